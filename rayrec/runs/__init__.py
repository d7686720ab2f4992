"""The run folder: manifests, storage, cache, trace and lease."""
