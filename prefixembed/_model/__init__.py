"""The transformer: attention, pooling, devices."""
