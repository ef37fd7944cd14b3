"""The built-in kinds of labellers, one file each with its configuration; `cocomix.concepts` has their names."""
