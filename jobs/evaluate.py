"""Answer and score questions from a cache, on a cluster.

`ray job submit -- python jobs/evaluate.py --config jobs/evaluate.yaml` takes the
options of `trio-ray evaluate`. Ray's job server sets RAY_ADDRESS, so the job joins the cluster it was submitted to.
"""

import sys

from trio_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
