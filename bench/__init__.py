"""Benchmarks: every op from its record, every model against transformers, in the same run.

    python -m bench kernels|models|gpu|report|compare        (anywhere: fastspeech bench ...)
    pytest bench                                             (the CPU suites)
"""
