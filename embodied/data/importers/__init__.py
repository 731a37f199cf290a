"""Other formats, read as a `Source` in the item format of `embodied.schema`."""
