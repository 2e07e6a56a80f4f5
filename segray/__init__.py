"""segray: which segmentation model is best on my street images once each is tuned fairly?"""

__version__ = "0.1.0"
