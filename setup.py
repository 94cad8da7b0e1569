"""Build of the C++ kernels, `cptron._kernels`, and of what a wheel carries beside the package; everything else is in
pyproject.toml."""

from glob import glob
from pathlib import Path
from typing import ClassVar

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py

kernels = Pybind11Extension(
    "cptron._kernels",
    sources=sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    cxx_std=17,
    # no fused multiply-add: a kernel and its numpy twin round alike on every machine
    extra_compile_args=["-O3", "-ffp-contract=off"],
)


class BuildWithTemplates(build_py):
    """Puts launch/*.sbatch below cptron/launch, where an installed `cptron submit` looks for them."""

    templates: ClassVar[dict[str, str]] = {
        path: f"cptron/launch/templates/{Path(path).name}" for path in sorted(glob("launch/*.sbatch"))
    }

    def run(self):
        """Build the package, then add them; an editable install finds those of the checkout."""
        super().run()
        for source, target in [] if self.editable_mode else self.templates.items():
            self.mkpath(str(Path(self.build_lib, target).parent))
            self.copy_file(source, str(Path(self.build_lib, target)), preserve_mode=False)

    def get_source_files(self):
        """What a source distribution needs of them."""
        return [*super().get_source_files(), *self.templates]

    def get_outputs(self, include_bytecode=True):
        """What is installed of them."""
        built = (
            []
            if self.editable_mode
            else [str(Path(self.build_lib, path)) for path in self.templates.values()]
        )
        return [*super().get_outputs(include_bytecode), *built]


setup(ext_modules=[kernels], cmdclass={"build_ext": build_ext, "build_py": BuildWithTemplates})
