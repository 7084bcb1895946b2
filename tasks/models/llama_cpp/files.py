"""The files that llama.cpp's build leaves: programs, libraries, and kernels by processor."""

import platform
import sys

# llama-quantize is what our own quantizing is held against.
PROGRAMS = ("llama-server", "llama-imatrix", "llama-quantize")
LIBRARIES = (
    *("llama", "llama-common", "mtmd", "ggml", "ggml-base"),
    *("llama-server-impl", "llama-quantize-impl"),
)
# One build of the CPU kernels for each generation of processors, the best chosen at run time
# (GGML_CPU_ALL_VARIANTS in ggml/src/CMakeLists.txt).
PROCESSORS = {
    ("Linux", "x86_64"): (
        *("x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "skylakex"),
        *("cannonlake", "cascadelake", "icelake", "cooperlake", "zen4", "alderlake"),
        "sapphirerapids",
    ),
    ("Linux", "aarch64"): (
        *("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3", "armv8.6_1", "armv8.6_2"),
        *("armv9.2_1", "armv9.2_2"),
    ),
    ("Darwin", "arm64"): ("apple_m1", "apple_m2_m3", "apple_m4"),
}


def dispatches() -> bool:
    """Whether the tree offers kernels chosen at run time on this platform."""
    return (platform.system(), platform.machine()) in PROCESSORS


def library_file(name: str) -> str:
    """The file name of a shared library: `libllama.so`."""
    return f"lib{name}.{'dylib' if sys.platform == 'darwin' else 'so'}"


def built_files() -> list[str]:
    """Names of the files that make up llama-server and what it loads."""
    processors = PROCESSORS.get((platform.system(), platform.machine()))
    kernels = [f"libggml-cpu-{name}.so" for name in processors or ()]
    if processors is None:
        kernels = [library_file("ggml-cpu")]
    if sys.platform == "darwin":
        kernels.append("libggml-metal.so" if processors else library_file("ggml-metal"))
    return [*PROGRAMS, *map(library_file, LIBRARIES), *kernels]


def server_files() -> list[str]:
    """Of those, what llama-server needs beside it."""
    others = (*PROGRAMS, library_file("llama-quantize-impl"))
    return [name for name in built_files() if name not in others]
