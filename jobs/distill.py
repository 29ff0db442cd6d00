"""Train a student from cached teacher prefixes, on a cluster.

`ray job submit -- python jobs/distill.py --config jobs/distill.yaml` takes the
options of `trio-ray distill`. Ray's job server sets RAY_ADDRESS, so the job joins the cluster it was submitted to.
"""

import sys

from trio_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
