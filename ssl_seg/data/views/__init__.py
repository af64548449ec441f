"""What the network sees of a patch: normalization, geometry, weak and strong views, mixtures."""
