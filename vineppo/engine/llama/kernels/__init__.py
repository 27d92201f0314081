"""Between matrix products: interface and PyTorch in plain.py, C++ in native.py, Triton in triton.py and graphs.py."""
