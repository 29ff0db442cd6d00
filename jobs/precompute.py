"""The precompute job for a cluster: `ray job submit -- python jobs/precompute.py --config jobs/precompute.yaml`.

Takes the options of `trio-ray precompute`. Ray's job server sets RAY_ADDRESS, so the job joins the cluster it was
submitted to.
"""

import sys

from trio_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["precompute", *sys.argv[1:]]))
