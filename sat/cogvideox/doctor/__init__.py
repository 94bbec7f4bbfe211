"""A page that shows a data set, and one sample's way from its file to training."""
