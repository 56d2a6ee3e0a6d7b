"""From source folders to a store of checked, mended and resized frames; splits."""
