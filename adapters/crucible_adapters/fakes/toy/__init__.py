"""A model of a few arrays that learns for real: what the fakes of training and sampling share."""
