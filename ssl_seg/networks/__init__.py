"""The networks: builders by name, published encoders, parts, precision, and the file a network is kept in."""
