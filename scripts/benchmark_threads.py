"""What a busy machine does to a training step: threads of libgomp that spin while they wait, and threads that sleep.

Each row is a process of its own: forward and backward pass of the default network on 4 patches of 128 x 128, beside as
many processes that keep a core busy.

    python scripts/benchmark_threads.py
    python scripts/benchmark_threads.py --threads 1 2 4 --busy 0 2 4
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

STEP = """
import sys, time
import torch
from ssl_seg.networks.builders import build_network
net = build_network("encoder_unet", ndim=2, channels=1, num_classes=2, patch_size=(128, 128), features=16, norm="group",
                    deep_supervision=0, encoder="efficientnet_lite0", pretrained=False)
images = torch.randn(4, 1, 128, 128)
def step():
    net(images).square().mean().backward()
step()
began, used = time.monotonic(), time.process_time()
for _ in range(int(sys.argv[1])):
    step()
print((time.monotonic() - began) / int(sys.argv[1]), (time.process_time() - used) / int(sys.argv[1]))
"""
BUSY = "while True: pass"


def measure(threads: int, spins: str, steps: int) -> tuple[float, float]:
    """Return seconds and CPU seconds a step."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": spins}
    command = [sys.executable, "-c", STEP, str(steps)]
    wall, cpu = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    return float(wall), float(cpu)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, os.cpu_count() or 1], help="processes beside it")
    parser.add_argument("--spins", nargs="+", default=["0", "1000", "300000"], help="300000 is what libgomp does")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    print("busy threads    spins  s a step  CPU s")
    for busy in given.busy:
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            time.sleep(0.5)
            for threads in given.threads:
                for spins in given.spins:
                    wall, cpu = measure(threads, spins, given.steps)
                    print(f"{busy:4} {threads:7} {spins:>8} {wall:9.3f} {cpu:6.3f}", flush=True)
        finally:
            for other in others:
                other.kill()


if __name__ == "__main__":
    main()
