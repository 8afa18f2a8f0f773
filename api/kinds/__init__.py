"""The kinds that hyperlet serves: a declaration each, from which CRD, admission and the controller's stores follow."""
