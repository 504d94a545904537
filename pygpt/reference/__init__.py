"""The mathematics in numpy, one file a layer: the truth that everything else is compared with."""
