"""Splitting a planar mesh of convex polygons by the zero lines of functions that are affine on each polygon, in numba.

Which edge and which polygon a line cuts, where chords cross and in which order, and what bounds the pieces follow from
signs at vertices and from the order of points around a polygon alone; coordinates are only carried along.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

UNIT = 2.0**-53
TINY = 1e-300
"""Stands for a value that is not known to be zero."""
_ONE = np.uint64(1)
_INSERTION = 24


@intrinsic
def _count_below_lowest(typing_context, word):  # type: ignore[no-untyped-def]
    """Number of the lowest bit that is set."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def _count_bits(typing_context, word):  # type: ignore[no-untyped-def]
    """Number of bits that are set."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


# The type checker takes an intrinsic for the function of two arguments that defines it.
_lowest_bit: Any = _count_below_lowest
_bits: Any = _count_bits


@njit(cache=True, nogil=True, error_model="numpy")
def signs(values, column, threshold, gain, offset, scale, positive, negative, unsure):  # type: ignore[no-untyped-def]
    """Certain signs of values[v, column[d]] - threshold[d] as bits; ``unsure`` where the band does not tell."""
    count = np.int64(0)
    decisions = column.size
    for v in range(values.shape[0]):
        size = scale[v]
        for word in range(positive.shape[1]):
            above = np.uint64(0)
            below = np.uint64(0)
            unknown = np.uint64(0)
            first = 64 * word
            for bit in range(min(64, decisions - first)):
                d = first + bit
                value = values[v, column[d]] - threshold[d]
                band = gain[d] * size + offset[d]
                mark = _ONE << np.uint64(bit)
                if value > band:
                    above |= mark
                elif value < -band:
                    below |= mark
                elif band > 0 or value != 0:
                    unknown |= mark
            positive[v, word] = above
            negative[v, word] = below
            unsure[v, word] = unknown
            count += np.int64(_bits(unknown))
    return count


@njit(cache=True, nogil=True)
def survey(first, second, starts, halves, positive, negative, crossings, on, cut, cuts):  # type: ignore[no-untyped-def]
    """How many functions change sign on each edge and in each face, and the signs that a face has throughout."""
    words = positive.shape[1]
    for e in range(first.size):
        a, b = first[e], second[e]
        count = np.int64(0)
        for w in range(words):
            count += np.int64(_bits((positive[a, w] & negative[b, w]) | (negative[a, w] & positive[b, w])))
        crossings[e] = count
    for face in range(starts.size - 1):
        count = np.int64(0)
        for w in range(words):
            above = np.uint64(0)
            below = np.uint64(0)
            for i in range(starts[face], starts[face + 1]):
                half = halves[i]
                v = first[half >> 1] if half & 1 == 0 else second[half >> 1]
                above |= positive[v, w]
                below |= negative[v, w]
            both = above & below
            on[face, w] = above & ~both
            cut[face, w] = both
            count += np.int64(_bits(both))
        cuts[face] = count


@njit(cache=True, nogil=True)
def _sort(t, spread, low, high, order):  # type: ignore[no-untyped-def]
    """Sort t[low:high], permuting ``spread`` and ``order`` alike."""
    if high - low <= _INSERTION:
        for i in range(low + 1, high):
            key, width, number = t[i], spread[i], order[i]
            j = i - 1
            while j >= low and t[j] > key:
                t[j + 1], spread[j + 1], order[j + 1] = t[j], spread[j], order[j]
                j -= 1
            t[j + 1], spread[j + 1], order[j + 1] = key, width, number
    else:
        by = np.argsort(t[low:high], kind="mergesort")
        t[low:high] = t[low:high][by]
        spread[low:high] = spread[low:high][by]
        order[low:high] = order[low:high][by]


@njit(cache=True, nogil=True)
def _mark_ties(t, spread, low, high, tied):  # type: ignore[no-untyped-def]
    """tied[i]: the order of i - 1 and i is not certain, because their intervals, or those around them, overlap."""
    close = 0
    reach = -np.inf
    for i in range(low, high):
        tied[i] = i > low and reach >= t[i] - spread[i]
        reach = max(reach, t[i] + spread[i])
    reach = np.inf
    for i in range(high - 1, low, -1):
        reach = min(reach, t[i] - spread[i])
        if t[i - 1] + spread[i - 1] >= reach:
            tied[i] = True
        close += tied[i]
    return close


@njit(cache=True, nogil=True, error_model="numpy")
def _parameter(start, end, start_band, end_band):  # type: ignore[no-untyped-def]
    """Where an affine function with these values at the ends is zero, as a share of the way, and its error."""
    gap = abs(start) + abs(end)
    band = start_band + end_band
    if not gap > band:
        return (abs(start) / gap if gap > 0 else 0.5), 1.0
    # The signs differ, so gap is the true difference: nothing cancels. For errors d, e at the ends and s = start / gap
    # the share moves by ((1 - s) |d| + s |e|) / (gap - |d| - |e|) at most.
    share = abs(start) / gap
    return share, ((1 - share) * start_band + share * end_band) / (gap - band) + 4 * UNIT


@njit(cache=True, nogil=True, error_model="numpy")
def edge_crossings(  # type: ignore[no-untyped-def]
    points, first, second, positive, negative, values, column, threshold, gain, offset, scale, rounding, distance,
    offsets, decision, t, spread, tied, loose,
):  # fmt: skip
    """The crossings of every edge, sorted from its first to its second end.

    ``loose``: rounding has likely moved the crossing by more than ``distance``. Returns how many are tied or loose.
    """
    close = 0
    for e in range(first.size):
        i = offsets[e]
        if offsets[e + 1] == i:
            continue
        a, b = first[e], second[e]
        for w in range(positive.shape[1]):
            word = (positive[a, w] & negative[b, w]) | (negative[a, w] & positive[b, w])
            while word != 0:
                d = np.int64(64 * w) + np.int64(_lowest_bit(word))
                word &= word - _ONE
                start = values[a, column[d]] - threshold[d]
                end = values[b, column[d]] - threshold[d]
                decision[i] = d
                t[i], spread[i] = _parameter(start, end, gain[d] * scale[a] + offset[d], gain[d] * scale[b] + offset[d])
                i += 1
        _sort(t, spread, offsets[e], i, decision)
        length = abs(points[b, 0] - points[a, 0]) + abs(points[b, 1] - points[a, 1])
        close += _mark_ties(t, spread, offsets[e], i, tied)
        for i in range(offsets[e], offsets[e + 1]):
            if spread[i] * length > distance:
                d = decision[i]
                gap = abs(values[a, column[d]] - values[b, column[d]])
                loose[i] = (gain[d] * (rounding[a] + rounding[b]) + offset[d]) * length > distance * gap
                close += loose[i]
    return close


@njit(cache=True, nogil=True)
def cut_edges(  # type: ignore[no-untyped-def]
    first, second, line, offsets, t, spread, equal, vertices,
    sources, weights, drift, new_first, new_second, new_line, point_lines, edge_starts, ranks,
):  # fmt: skip
    """Cut the edges at their crossings: new vertices, numbered along the edges, and the pieces in their order.

    ``equal[i]``: crossing i is the same point as crossing i - 1. ``ranks[i]``: number of the point along its edge.
    ``sources``, ``weights``, ``drift`` and ``point_lines`` hold one row a new vertex; see `carry`.
    """
    vertex = 0
    piece = 0
    for e in range(first.size):
        edge_starts[e] = piece
        a, b = first[e], second[e]
        last = a
        rank = -1
        for i in range(offsets[e], offsets[e + 1]):
            if rank >= 0 and equal[i]:
                ranks[i] = rank
                continue
            rank += 1
            ranks[i] = rank
            share = t[i]
            sources[vertex, 0], sources[vertex, 1], sources[vertex, 2], sources[vertex, 3] = a, b, a, a
            weights[vertex, 0], weights[vertex, 1], weights[vertex, 2], weights[vertex, 3] = 1 - share, share, 0.0, 0.0
            drift[vertex, 0], drift[vertex, 1], drift[vertex, 2] = spread[i], 0.0, -1.0
            point_lines[vertex, 0] = line[e]
            point_lines[vertex, 1] = -1
            new_first[piece], new_second[piece], new_line[piece] = last, vertices + vertex, line[e]
            last = vertices + vertex
            piece += 1
            vertex += 1
        new_first[piece], new_second[piece], new_line[piece] = last, b, line[e]
        piece += 1
    edge_starts[first.size] = piece


@njit(cache=True, nogil=True)
def _interleaved(p, q, r, s):  # type: ignore[no-untyped-def]
    """Whether the chords (p, q) and (r, s), each in ascending order, cross inside the polygon."""
    return (p < r < q < s) or (r < p < s < q)


@njit(cache=True, nogil=True)
def chords(  # type: ignore[no-untyped-def]
    first, second, starts, halves, positive, negative, cut, cuts, offsets, decision, ranks, edge_starts, vertices,
    line_base, chord_starts, ring_starts, point_lines,
    ring, ring_halves, chord_decision, chord_from, chord_to, chord_twin, chord_crossings,
):  # fmt: skip
    """The ring of vertices of every face that is cut, and where each chord starts and ends on it.

    ``chord_twin``: the earlier chord of the same face with the same ends, or -1. ``chord_crossings``: with how many
    chords it crosses inside the face. Returns the first face where a chord does not have two ends, or -1.
    """
    slot = np.empty(64 * positive.shape[1], np.int64)
    at = np.empty(0, np.int64)
    chain = np.empty(0, np.int64)
    for face in range(starts.size - 1):
        if cuts[face] == 0:
            continue
        base = chord_starts[face]
        count = 0
        for w in range(positive.shape[1]):
            word = cut[face, w]
            while word != 0:
                d = np.int64(64 * w) + np.int64(_lowest_bit(word))
                word &= word - _ONE
                slot[d] = base + count
                chord_decision[base + count] = d
                chord_from[base + count] = -1
                chord_to[base + count] = -1
                chord_twin[base + count] = -1
                chord_crossings[base + count] = 0
                count += 1
        place = ring_starts[face]
        for i in range(starts[face], starts[face + 1]):
            half = halves[i]
            e = half >> 1
            v = first[e] if half & 1 == 0 else second[e]
            position = place - ring_starts[face]
            ring[place] = v
            for w in range(positive.shape[1]):
                word = cut[face, w] & ~(positive[v, w] | negative[v, w])
                while word != 0:
                    c = slot[np.int64(64 * w) + np.int64(_lowest_bit(word))]
                    word &= word - _ONE
                    if chord_from[c] < 0:
                        chord_from[c] = position
                    elif chord_to[c] < 0:
                        chord_to[c] = position
                    else:
                        return face
            pieces = edge_starts[e + 1] - edge_starts[e]
            for k in range(pieces):
                ring_halves[place + k] = (
                    2 * (edge_starts[e] + k) if half & 1 == 0 else 2 * (edge_starts[e + 1] - 1 - k) + 1
                )
            before = edge_starts[e] - e  # new vertices on the edges before this one
            for k in range(pieces - 1):
                ring[place + 1 + k] = vertices + before + (k if half & 1 == 0 else pieces - 2 - k)
            for i in range(offsets[e], offsets[e + 1]):
                c = slot[decision[i]]
                position = place - ring_starts[face] + 1 + (ranks[i] if half & 1 == 0 else pieces - 2 - ranks[i])
                # Crossings of the second direction come in descending order of position.
                if chord_from[c] < 0:
                    chord_from[c] = position
                elif chord_to[c] < 0:
                    chord_to[c] = position
                else:
                    return face
                point_lines[before + ranks[i], 1] = line_base + c
            place += pieces
        size = place - ring_starts[face]
        if at.size < size:
            at = np.empty(2 * size, np.int64)
        if chain.size < count:
            chain = np.empty(2 * count, np.int64)
        at[:size] = -1
        for i in range(count):
            c = base + i
            if chord_to[c] < 0:
                return face
            k = at[chord_from[c]]
            while k >= 0:
                if chord_to[base + k] == chord_to[c] and chord_twin[base + k] < 0:
                    chord_twin[c] = base + k
                k = chain[k]
            chain[i] = at[chord_from[c]]
            at[chord_from[c]] = i
        for c in range(base, base + count):
            if chord_twin[c] >= 0:
                continue
            p, q = chord_from[c], chord_to[c]
            for other in range(c + 1, base + count):
                if chord_twin[other] < 0 and _interleaved(p, q, chord_from[other], chord_to[other]):
                    chord_crossings[c] += 1
                    chord_crossings[other] += 1
    return -1


@njit(cache=True, nogil=True)
def _at_ring(  # type: ignore[no-untyped-def]
    vertex, vertices, d, values, column, threshold, gain, offset, scale, sources, weights, drift
):
    """Value of decision d at a vertex of a ring, old or on an edge, and its band."""
    if vertex < vertices:
        return values[vertex, column[d]] - threshold[d], gain[d] * scale[vertex] + offset[d]
    new = vertex - vertices
    a, b = sources[new, 0], sources[new, 1]
    start, end = values[a, column[d]] - threshold[d], values[b, column[d]] - threshold[d]
    band = gain[d] * (weights[new, 0] * scale[a] + weights[new, 1] * scale[b]) + offset[d]
    size = max(abs(start), abs(end))
    return weights[new, 0] * start + weights[new, 1] * end, band + drift[new, 0] * abs(end - start) + 4 * UNIT * size


@njit(cache=True, nogil=True, error_model="numpy")
def cross(  # type: ignore[no-untyped-def]
    faces, points, values, column, threshold, gain, offset, scale, rounding, distance, sources, weights, drift,
    ring, ring_starts, chord_starts, chord_decision, chord_from, chord_to, chord_twin,
    entry_starts, pair_starts, other, t, spread, entry, pair, tied, loose,
):  # fmt: skip
    """The crossings along every chord, sorted from its start to its end; each pair of chords is one crossing.

    ``other`` [entry] the chord that crosses, ``pair`` [entry] the number of the crossing, ``loose`` as for edges.
    ``entry`` is scratch. Returns how many are tied or loose.
    """
    close = 0
    vertices = len(points)
    steady = np.zeros_like(drift)
    for face in range(faces):
        if pair_starts[face + 1] == pair_starts[face]:
            continue
        low, high = chord_starts[face], chord_starts[face + 1]
        base = ring_starts[face]
        number = pair_starts[face]
        for c in range(low, high):
            entry[c] = entry_starts[c]
        for c in range(low, high):
            if chord_twin[c] >= 0 or entry_starts[c + 1] == entry_starts[c]:
                continue
            p, q, d = chord_from[c], chord_to[c], chord_decision[c]
            for o in range(c + 1, high):
                if chord_twin[o] >= 0 or not _interleaved(p, q, chord_from[o], chord_to[o]):
                    continue
                for one, two in ((c, o), (o, c)):
                    d = chord_decision[two]
                    start, start_band = _at_ring(
                        ring[base + chord_from[one]], vertices, d, values, column, threshold, gain, offset, scale,
                        sources, weights, drift,
                    )  # fmt: skip
                    end, end_band = _at_ring(
                        ring[base + chord_to[one]], vertices, d, values, column, threshold, gain, offset, scale,
                        sources, weights, drift,
                    )  # fmt: skip
                    i = entry[one]
                    entry[one] += 1
                    other[i] = two
                    pair[i] = number
                    if (start > 0) == (end > 0):  # rounding: the true signs differ
                        t[i], spread[i] = _parameter(start, end, start_band, np.inf)
                    else:
                        t[i], spread[i] = _parameter(start, end, start_band, end_band)
                number += 1
        for c in range(low, high):
            a, b = entry_starts[c], entry_starts[c + 1]
            if a == b:
                continue
            _sort_entries(t, spread, other, pair, a, b)
            length = 0.0
            for axis in range(2):
                start = _coordinate(points, vertices, sources, weights, ring[base + chord_from[c]], axis)
                length += abs(_coordinate(points, vertices, sources, weights, ring[base + chord_to[c]], axis) - start)
            close += _mark_ties(t, spread, a, b, tied)
            for i in range(a, b):
                if spread[i] * length > distance:
                    d = chord_decision[other[i]]
                    gap, band = 0.0, 0.0
                    for vertex in (ring[base + chord_from[c]], ring[base + chord_to[c]]):
                        value, one = _at_ring(
                            vertex, vertices, d, values, column, threshold, gain, offset, rounding, sources, weights,
                            steady,
                        )  # fmt: skip
                        gap = abs(value - gap)
                        band += one
                    loose[i] = band * length > distance * gap
                    close += loose[i]
    return close


@njit(cache=True, nogil=True)
def _coordinate(points, vertices, sources, weights, vertex, axis):  # type: ignore[no-untyped-def]
    """Coordinate of a vertex of a ring, old or on an edge."""
    if vertex < vertices:
        return points[vertex, axis]
    new = vertex - vertices
    return weights[new, 0] * points[sources[new, 0], axis] + weights[new, 1] * points[sources[new, 1], axis]


@njit(cache=True, nogil=True)
def _sort_entries(t, spread, other, pair, low, high):  # type: ignore[no-untyped-def]
    if high - low <= _INSERTION:
        for i in range(low + 1, high):
            key, width, chord, number = t[i], spread[i], other[i], pair[i]
            j = i - 1
            while j >= low and t[j] > key:
                t[j + 1], spread[j + 1], other[j + 1], pair[j + 1] = t[j], spread[j], other[j], pair[j]
                j -= 1
            t[j + 1], spread[j + 1], other[j + 1], pair[j + 1] = key, width, chord, number
    else:
        by = np.argsort(t[low:high], kind="mergesort")
        t[low:high] = t[low:high][by]
        spread[low:high] = spread[low:high][by]
        other[low:high] = other[low:high][by]
        pair[low:high] = pair[low:high][by]


@njit(cache=True, nogil=True)
def _before(position, low, high, other, chord_from, chord_to, entry_low, entry_high):  # type: ignore[no-untyped-def]
    """The way out of a crossing point that comes just before the one to ``position``: its entry and its end.

    Ways out lie in the order of the ring. They belong to the chord from ``low`` to ``high`` (entry -1) and to those in
    the entries.
    """
    best = -1
    best_position = -1
    last = -1
    last_position = -1
    for i in range(entry_low, entry_high):
        for end in (chord_from[other[i]], chord_to[other[i]]):
            if best_position < end < position:
                best, best_position = i, end
            if end > last_position:
                last, last_position = i, end
    for end in (low, high):
        if best_position < end < position:
            best, best_position = -1, end
        if end > last_position:
            last, last_position = -1, end
    if best_position >= 0:
        return best, best_position
    return last, last_position


@njit(cache=True, nogil=True)
def _keys_of(bits, keys):  # type: ignore[no-untyped-def]
    """XOR of the keys of all decisions whose bit is set."""
    value = np.uint64(0)
    for w in range(bits.size):
        word = bits[w]
        while word != 0:
            value ^= keys[64 * w + np.int64(_lowest_bit(word))]
            word &= word - _ONE
    return value


@njit(cache=True, nogil=True)
def trace(  # type: ignore[no-untyped-def]
    first, second, starts, halves, positive, negative, on, cuts, edge_starts, vertices, keys, stage_depth, line_base,
    ring, ring_halves, ring_starts, chord_starts, chord_decision, chord_from, chord_to, chord_twin,
    entry_starts, pair_starts, other, pair, t, spread, node, sources, weights, drift, edge_vertices,
    segment_starts, face_starts, half_starts, hashes, depths,
    new_first, new_second, new_line, point_lines, new_starts, new_halves, new_hashes, new_depths, new_on, parents,
):  # fmt: skip
    """The pieces of every face.

    ``node`` [pair]: number of the crossing point (pairs of concurrent chords share one); crossing points come behind
    the ``edge_vertices`` among the new vertices. Returns the first face whose pieces do not add up, or -1.
    """
    most_ring = 1
    most_halves = 1
    most_faces = 1
    most_entries = 1
    most_chords = 1
    for face in range(starts.size - 1):
        if cuts[face] > 0:
            segments = segment_starts[chord_starts[face + 1]] - segment_starts[chord_starts[face]]
            size = ring_starts[face + 1] - ring_starts[face]
            most_ring = max(most_ring, size)
            most_halves = max(most_halves, size + 2 * segments)
            most_faces = max(most_faces, face_starts[face + 1] - face_starts[face])
            most_chords = max(most_chords, chord_starts[face + 1] - chord_starts[face])
            most_entries = max(most_entries, entry_starts[chord_starts[face + 1]] - entry_starts[chord_starts[face]])
    follower = np.empty(most_halves, np.int64)
    owner = np.empty(most_halves, np.int64)
    loop = np.empty(most_halves, np.int64)
    loop_starts = np.empty(most_faces + 1, np.int64)
    queue = np.empty(most_faces, np.int64)
    known = np.empty(most_faces, np.bool_)
    head = np.empty(most_ring, np.int64)
    chain = np.empty((most_chords, 2), np.int64)
    step = np.empty(most_entries, np.int64)  # number of the crossing point along the entry's chord
    partner = np.empty(most_entries, np.int64)  # entry of the same pair on the other chord
    seen = np.empty(most_entries, np.int64)
    edges = edge_starts[first.size]
    words = on.shape[1]
    for face in range(starts.size - 1):
        out = half_starts[face]
        child = face_starts[face]
        if cuts[face] == 0:
            for i in range(starts[face], starts[face + 1]):
                half = halves[i]
                new_halves[out] = 2 * edge_starts[half >> 1] + (half & 1)
                out += 1
            new_starts[child + 1] = out
            new_on[child] = on[face]
            new_hashes[child] = hashes[face] ^ _keys_of(on[face], keys)
            new_depths[child] = depths[face]
            parents[child] = face
            continue
        base, size = ring_starts[face], ring_starts[face + 1] - ring_starts[face]
        low, high = chord_starts[face], chord_starts[face + 1]
        entries, segments = entry_starts[low], segment_starts[low]
        # Crossing points: their number along each chord, and where the same pair stands on the other chord.
        if entry_starts[high] > entries:
            pair_base = pair_starts[face]
            for i in range((entry_starts[high] - entries) // 2):
                seen[i] = -1
            for c in range(low, high):
                count = -1
                for i in range(entry_starts[c], entry_starts[c + 1]):
                    if i == entry_starts[c] or node[pair[i]] != node[pair[i - 1]]:
                        count += 1
                    step[i - entries] = count
                    k = pair[i] - pair_base
                    if seen[k] < 0:
                        seen[k] = i
                    else:
                        partner[i - entries] = seen[k]
                        partner[seen[k] - entries] = i
        head[:size] = -1
        twins = False
        for c in range(low, high):
            if chord_twin[c] >= 0:
                twins = True
                continue
            chain[c - low, 0] = head[chord_from[c]]
            head[chord_from[c]] = 2 * (c - low)
            chain[c - low, 1] = head[chord_to[c]]
            head[chord_to[c]] = 2 * (c - low) + 1
        # Who follows whom counterclockwise around a piece: at a vertex, the way out just clockwise of the way back.
        for r in range(size):
            # Arriving along the ring: the way out with the farthest other end, or the ring itself.
            before = (r - 1) % size
            follower[before] = r
            k = head[r]
            farthest = -1
            while k >= 0:
                c = low + (k >> 1)
                end = chord_to[c] if k & 1 == 0 else chord_from[c]
                distance = (end - r) % size
                if distance > farthest:
                    farthest = distance
                    follower[before] = (
                        size + 2 * (segment_starts[c] - segments)
                        if k & 1 == 0
                        else size + 2 * (segment_starts[c + 1] - 1 - segments) + 1
                    )
                k = chain[k >> 1, k & 1]
            # Arriving along a chord: the chord with the next smaller distance, or the ring.
            k = head[r]
            while k >= 0:
                c = low + (k >> 1)
                end = chord_to[c] if k & 1 == 0 else chord_from[c]
                distance = (end - r) % size
                arriving = (
                    size + 2 * (segment_starts[c] - segments) + 1
                    if k & 1 == 0
                    else size + 2 * (segment_starts[c + 1] - 1 - segments)
                )
                follower[arriving] = r
                nearest = -1
                j = head[r]
                while j >= 0:
                    o = low + (j >> 1)
                    far = ((chord_to[o] if j & 1 == 0 else chord_from[o]) - r) % size
                    if nearest < far < distance:
                        nearest = far
                        follower[arriving] = (
                            size + 2 * (segment_starts[o] - segments)
                            if j & 1 == 0
                            else size + 2 * (segment_starts[o + 1] - 1 - segments) + 1
                        )
                    j = chain[j >> 1, j & 1]
                k = chain[k >> 1, k & 1]
        for c in range(low, high):
            a = entry_starts[c]
            while a < entry_starts[c + 1]:
                b = a + 1
                while b < entry_starts[c + 1] and node[pair[b]] == node[pair[a]]:
                    b += 1
                s = step[a - entries]
                for toward in range(2):  # arriving on the way to the end (0), to the start (1)
                    back = chord_from[c] if toward == 0 else chord_to[c]
                    i, end = _before(back, chord_from[c], chord_to[c], other, chord_from, chord_to, a, b)
                    o = c if i < 0 else other[i]
                    so = s if i < 0 else step[partner[i - entries] - entries]
                    out_half = (
                        size + 2 * (segment_starts[o] - segments + so + 1)
                        if end == chord_to[o]
                        else size + 2 * (segment_starts[o] - segments + so) + 1
                    )
                    arriving = (
                        size + 2 * (segment_starts[c] - segments + s)
                        if toward == 0
                        else size + 2 * (segment_starts[c] - segments + s + 1) + 1
                    )
                    follower[arriving] = out_half
                a = b
        # New edges and points.
        for c in range(low, high):
            if chord_twin[c] >= 0:
                continue
            s = segment_starts[c]
            last = ring[base + chord_from[c]]
            p, q = last, ring[base + chord_to[c]]
            for i in range(entry_starts[c], entry_starts[c + 1]):
                if i > entry_starts[c] and node[pair[i]] == node[pair[i - 1]]:
                    continue
                new = edge_vertices + node[pair[i]]
                if sources[new, 0] < 0:
                    _combine(new, p, q, t[i], spread[i], vertices, sources, weights, drift)
                    point_lines[new, 0] = line_base + c
                    point_lines[new, 1] = line_base + other[i]
                new_first[edges + s], new_second[edges + s] = last, vertices + new
                new_line[edges + s] = line_base + c
                last = vertices + new
                s += 1
            new_first[edges + s], new_second[edges + s] = last, q
            new_line[edges + s] = line_base + c
        # Walk around the pieces.
        total = size + 2 * (segment_starts[high] - segments)
        owner[:total] = -1
        count = 0
        filled = 0
        for half in range(total):
            if owner[half] >= 0:
                continue
            loop_starts[count] = filled
            walk = half
            while owner[walk] < 0:
                owner[walk] = count
                loop[filled] = walk
                filled += 1
                walk = follower[walk]
            count += 1
            if count == most_faces:
                break
        loop_starts[count] = filled
        if filled != total or count != face_starts[face + 1] - child:
            return face
        # Hash and signs: of the piece at the ring's first edge from the signs, of the others across the chords.
        known[:count] = False
        start_hash = hashes[face] ^ _keys_of(on[face], keys)
        new_on[child] = on[face]
        for c in range(low, high):
            d = chord_decision[c]
            w, mark = d >> 6, _ONE << np.uint64(d & 63)
            for r in range(size):
                v = ring[base + r]
                if v >= vertices:
                    continue
                above = positive[v, w] & mark != 0
                if above or negative[v, w] & mark != 0:
                    inside = chord_from[c] < r < chord_to[c]
                    if (chord_from[c] == 0) == (inside == above):  # on along the ring's first edge
                        start_hash ^= keys[d]
                        new_on[child, w] |= mark
                    break
        new_hashes[child] = start_hash
        known[0] = True
        queue[0] = 0
        done, waiting = 0, 1
        while done < waiting:
            f = queue[done]
            done += 1
            for i in range(loop_starts[f], loop_starts[f + 1]):
                half = loop[i]
                if half < size:
                    continue
                g = owner[size + ((half - size) ^ 1)]
                if known[g]:
                    continue
                known[g] = True
                queue[waiting] = g
                waiting += 1
                value = new_hashes[child + f]
                for w in range(words):
                    new_on[child + g, w] = new_on[child + f, w]
                # the chord of this segment, and its twins
                c = _chord_of((half - size) // 2 + segments, segment_starts, low, high)
                for o in range(c, high if twins else c + 1):
                    if o == c or chord_twin[o] == c:
                        d = chord_decision[o]
                        value ^= keys[d]
                        new_on[child + g, d >> 6] ^= _ONE << np.uint64(d & 63)
                new_hashes[child + g] = value
        for f in range(count):
            for i in range(loop_starts[f], loop_starts[f + 1]):
                half = loop[i]
                new_halves[out] = ring_halves[base + half] if half < size else 2 * (edges + segments) + (half - size)
                out += 1
            new_starts[child + f + 1] = out
            new_depths[child + f] = stage_depth
            parents[child + f] = face
    return -1


@njit(cache=True, nogil=True)
def _chord_of(segment, segment_starts, low, high):  # type: ignore[no-untyped-def]
    """The chord that a segment belongs to."""
    while high - low > 1:
        middle = (low + high) >> 1
        if segment_starts[middle] <= segment:
            low = middle
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _combine(new, p, q, share, spread, vertices, sources, weights, drift):  # type: ignore[no-untyped-def]
    """A point on the chord from p to q, each old or on an old edge, as a mean of at most four old vertices."""
    drift[new, 0], drift[new, 1], drift[new, 2] = 0.0, 0.0, spread
    for k, vertex, weight in ((0, p, 1 - share), (2, q, share)):
        if vertex < vertices:
            sources[new, k], sources[new, k + 1] = vertex, vertex
            weights[new, k], weights[new, k + 1] = weight, 0.0
        else:
            from_ = vertex - vertices
            for j in range(2):
                sources[new, k + j] = sources[from_, j]
                weights[new, k + j] = weight * weights[from_, j]
            drift[new, k >> 1] = drift[from_, 0]


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def carry(old, old_error, sources, weights, drift, tiny, new, new_error):  # type: ignore[no-untyped-def]
    """Values at new vertices: means of the values at their sources, with a bound on the error (Euclidean norm).

    A new vertex lies on an edge (sources 0, 1), or on a chord between two points, each on an edge (sources 0, 1 and
    2, 3) or a vertex itself. ``drift``: by which share of the way it may be off along the first edge, along the second,
    and along the chord (-1: it lies on an edge). A mean is zero only where all its sources are: a zero that rounding
    makes becomes ``tiny``.
    """
    zero = old.dtype.type(0)
    for i in range(new.shape[0]):
        a, b, c, d = sources[i, 0], sources[i, 1], sources[i, 2], sources[i, 3]
        p, q, r, s = weights[i, 0], weights[i, 1], weights[i, 2], weights[i, 3]
        size, way, other_way, chord = zero, zero, zero, zero
        if drift[i, 2] < 0:
            for j in range(old.shape[1]):
                x, y = old[a, j], old[b, j]
                value = x + q * (y - x)  # x itself where the two are equal
                new[i, j] = value if value != 0 or (x == 0 and y == 0) else tiny
                size += value * value
                way += (y - x) * (y - x)
            way = np.sqrt(way)
            error = p * old_error[a] + q * old_error[b] + drift[i, 0] * way
        else:
            # The ends of the chord, each as one of its sources and a share of the way to the other.
            near, far = (q / (p + q) if p + q > 0 else zero), (s / (r + s) if r + s > 0 else zero)
            for j in range(old.shape[1]):
                x, y, z, w = old[a, j], old[b, j], old[c, j], old[d, j]
                value = x + (q * (y - x) + r * (z - x) + s * (w - x))
                new[i, j] = value if value != 0 or (x == 0 and y == 0 and z == 0 and w == 0) else tiny
                size += value * value
                way += (y - x) * (y - x)
                other_way += (w - z) * (w - z)
                across = (z + far * (w - z)) - (x + near * (y - x))
                chord += across * across
            way, other_way = np.sqrt(way), np.sqrt(other_way)
            length = np.sqrt(chord)
            if p + q == 0:
                length += way  # where on its edge the end lies is lost
            if r + s == 0:
                length += other_way
            first, second = drift[i, 0] * way, drift[i, 1] * other_way
            error = p * old_error[a] + q * old_error[b] + r * old_error[c] + s * old_error[d]
            error += (p + q) * first + (r + s) * second + drift[i, 2] * (length + first + second)
            way += other_way + length
        new_error[i] = error + 8 * UNIT * (np.sqrt(size) + way)


@njit(cache=True, nogil=True)
def put_on_lines(  # type: ignore[no-untyped-def]
    values, column, threshold, rows, vertices, offsets, decision, ranks, edge_starts,
    chord_starts, chord_decision, chord_twin, entry_starts, pair, node, edge_vertices,
):  # fmt: skip
    """At a new vertex the functions whose lines meet there have their threshold as value, exactly."""
    for e in range(offsets.size - 1):
        for i in range(offsets[e], offsets[e + 1]):
            row = rows[vertices + edge_starts[e] - e + ranks[i]]
            if row >= 0:
                values[row, column[decision[i]]] = threshold[decision[i]]
    for c in range(chord_decision.size):
        lead = c if chord_twin[c] < 0 else chord_twin[c]
        for i in range(entry_starts[lead], entry_starts[lead + 1]):
            row = rows[vertices + edge_vertices + node[pair[i]]]
            if row >= 0:
                values[row, column[chord_decision[c]]] = threshold[chord_decision[c]]


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def relu(values, error, norms):  # type: ignore[no-untyped-def]
    """max(z, 0) in place. Zero exactly means off for certain: what the error leaves open becomes a tiny number."""
    for v in range(values.shape[0]):
        band = error[v]
        squares = 0.0
        for j in range(values.shape[1]):
            z = values[v, j]
            z = max(z, TINY) if (z > -band and z != 0) else 0.0
            values[v, j] = z
            squares += z * z
        norms[v] = np.sqrt(squares)


@njit(cache=True, nogil=True)
def order_loops(first, second, starts, halves):  # type: ignore[no-untyped-def]
    """Order the half-edges of every polygon so that each starts where the one before ends, in place."""
    for face in range(starts.size - 1):
        for i in range(starts[face], starts[face + 1] - 1):
            end = second[halves[i] >> 1] if halves[i] & 1 == 0 else first[halves[i] >> 1]
            for j in range(i + 1, starts[face + 1]):
                start = first[halves[j] >> 1] if halves[j] & 1 == 0 else second[halves[j] >> 1]
                if start == end:
                    halves[i + 1], halves[j] = halves[j], halves[i + 1]
                    break
