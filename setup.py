"""Packages whose source folder is not named after them: `kernels/` is installed as `fastspeech.kernels`."""

from setuptools import find_packages, setup

kernels = ["fastspeech.kernels", *(f"fastspeech.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["fastspeech", "fastspeech.*"]), *kernels],
    package_dir={"fastspeech": "fastspeech", "fastspeech.kernels": "kernels"},
    package_data={"fastspeech": ["py.typed", "assets/*"]},
)
