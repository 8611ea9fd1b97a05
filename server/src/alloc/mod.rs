//! Space of the extent area: which 4 KiB blocks are free.
