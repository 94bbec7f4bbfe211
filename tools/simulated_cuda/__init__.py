"""A CUDA device that does nothing, for counting what a real one would do.

Tensors know their shape, type and device, and hold no numbers (torch's FakeTensor). The program runs on them as it
runs on a GPU: operators that mix devices fail, bytes are counted while tensors live, and every wait of the host for
the device is seen.

    from simulated_cuda.device import start
    start()                      # first of all, in a process of its own: it may start the process again

Not covered: numbers, time, real kernels and their workspaces, the allocator's fragmentation, NCCL.
"""
