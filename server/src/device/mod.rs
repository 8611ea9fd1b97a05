//! Block access to a brick: files, block devices, io_uring, a thread pool, a simulated disk.
