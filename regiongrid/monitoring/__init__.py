"""The parts of `regiongrid.monitor`: what is measured, where, at what cost, and what is kept of it."""
