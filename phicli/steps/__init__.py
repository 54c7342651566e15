"""The steps of the lab as library functions: settings in, result out."""
