"""Build of the C++ kernels, `cptron._kernels`; everything else about the package is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

kernels = Pybind11Extension(
    "cptron._kernels",
    sources=sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    cxx_std=17,
    # no fused multiply-add: a kernel and its numpy twin round alike on every machine
    extra_compile_args=["-O3", "-ffp-contract=off"],
)

setup(ext_modules=[kernels], cmdclass={"build_ext": build_ext})
