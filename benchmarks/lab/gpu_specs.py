"""Properties of GPUs. With them, XLA compiles programs for a GPU that the machine does not have."""

from typing import Any, NamedTuple


class Target(NamedTuple):
    """A GPU.

    Attributes:
      name: name of the GPU in the NVIDIA driver.
      flops: peak FLOP/s of dense bfloat16 matrix products (data sheet).
      bandwidth: memory bandwidth, bytes per second.
      device: other properties, {XLA's name: value}.
    """

    name: str
    flops: float
    bandwidth: int
    device: dict[str, Any]

    def text(self) -> str:
        """Return the description for the compiler, a `GpuTargetConfigProto` as text."""
        known = COMMON | self.device | {"memory_bandwidth": self.bandwidth}
        fields = "\n".join(f"  {name}: {value}" for name, value in known.items())
        fields = fields.replace("cuda_compute_capability:", "cuda_compute_capability")
        return (
            f"gpu_device_info {{\n{fields}\n}}\n"
            'platform_name: "CUDA"\n'
            "dnn_version_info { major: 9 minor: 10 }\n"
            "runtime_version { major: 12 minor: 8 }\n"
            f'device_description_str: "{self.name}"\n'
        )


COMMON = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
}
TARGETS = {
    "h100": Target(
        "NVIDIA H100 80GB HBM3",
        flops=989e12,
        bandwidth=3352320000000,
        device={
            "cuda_compute_capability": "{ major: 9 }",
            "core_count": 132,
            "fpus_per_core": 128,
            "clock_rate_ghz": 1.98,
            "shared_memory_per_core": 233472,
            "shared_memory_per_block_optin": 232448,
            "l2_cache_size": 52428800,
            "device_memory_size": 84942979072,
        },
    ),
    "a100": Target(
        "NVIDIA A100-SXM4-80GB",
        flops=312e12,
        bandwidth=2039040000000,
        device={
            "cuda_compute_capability": "{ major: 8 }",
            "core_count": 108,
            "fpus_per_core": 64,
            "clock_rate_ghz": 1.41,
            "shared_memory_per_core": 167936,
            "shared_memory_per_block_optin": 166912,
            "l2_cache_size": 41943040,
            "device_memory_size": 85100068864,
        },
    ),
}
