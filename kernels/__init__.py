"""Every hot loop, one folder an operation: reference.py (obviously right), cpu.py (numba), and one public function."""
