"""An emulated AWS whose instances are real machines to the runner: for `./inv rehearse`, tests and benchmarks."""
