"""Groups: their elements, how they are sampled, and their infinitesimal generators."""
