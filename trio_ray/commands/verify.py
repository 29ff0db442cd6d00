"""Read a whole cache and name everything that is not as it was written.

Every byte is read and compared with its checksum: flipped bytes, truncated, missing and foreign objects, gaps between
parts. Files of attempts that never committed are listed too, but harm no reader; `trio-ray gc` deletes them. With
--repair damaged parts are set aside; docs/night.md says what to do when.
"""

from __future__ import annotations

import argparse

from trio_ray.commands._options import SHARE, add_s3_options, s3_config, whole
from trio_ray.store.findings import FindingKind, VerifyReport
from trio_ray.store.objects import ObjectStore
from trio_ray.store.opening import open_store
from trio_ray.store.repair import repair
from trio_ray.store.verify import Extent, verify

_CURES = {
    FindingKind.DATASET: "restore it from a copy; a run makes it anew only with the same settings, none of them open",
    FindingKind.FOREIGN: "is no part of a cache; move it elsewhere",
    FindingKind.UNREADABLE: "the store failed to read it, which says nothing about it; try again",
}
"""What to do about damage that setting a part aside cannot cure."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("cache", metavar="CACHE", help="a folder or s3://bucket/prefix")
    parser.add_argument("--threads", type=whole(1), default=8, metavar="N", help="shards checked at once (default 8)")
    parser.add_argument(
        "--shards",
        type=_share,
        default=(1, 1),
        metavar="I/N",
        help="of N shares of the shards read the I-th: N machines, or N nights, check the whole cache",
    )
    parser.add_argument(
        "--sample", type=SHARE, default=1.0, metavar="P", help="read this share of the shards, always the same ones"
    )
    parser.add_argument(
        "--repair", action="store_true",
        help="set damaged parts aside, so that the next run makes exactly these again (while no job is running)",
    )  # fmt: skip
    add_s3_options(parser)


def _share(text: str) -> tuple[int, int]:
    share, _, of = text.partition("/")
    if not (share.isdigit() and of.isdigit() and 1 <= int(share) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(share), int(of)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if anything is damaged and was not set aside, or a shard was given up."""
    share, of = arguments.shards
    extent = Extent(share, of, arguments.sample)
    store = open_store(arguments.cache, s3_config(arguments))
    report = verify(store, arguments.threads, extent)
    for finding in report.findings:
        key = f" key {finding.key!r}" if finding.key else ""
        print(f"{finding.kind}: {finding.object}{key}: {finding.detail}")
    for shard in report.incomplete:
        print(f"incomplete: shard {shard}: its end is not committed yet; run the job again")
    damaged = sum(finding.is_damage for finding in report.findings)
    given_up = sum(finding.kind is FindingKind.GIVEN_UP for finding in report.findings)
    verdict = "DAMAGED" if damaged else "NOT COMPLETE" if given_up else "ok"
    samples = f"{report.samples} samples and {report.quarantined} quarantined in {report.parts} parts"
    print(
        f"{verdict}: {samples}, {report.bytes:,} bytes read; {damaged} damaged, "
        f"{len(report.findings) - damaged - given_up} left by dead attempts, {given_up} shards given up, "
        f"{len(report.incomplete)} incomplete"
    )
    if arguments.repair and damaged:
        return _repair(store, report)
    return 0 if report.ok else 1


def _repair(store: ObjectStore, report: VerifyReport) -> int:
    """Set aside what is damaged; 1 if something is left."""
    done = repair(store, report.findings)
    for shard, part in done.parts:
        print(f"set aside: part {part} of shard {shard}")
    for finding in done.left:
        print(f"not repaired: {finding.object}: {_CURES.get(finding.kind, finding.detail)}")
    print(
        f"{len(done.parts)} parts set aside, {len(done.deleted)} objects deleted that are made anew; run the job "
        "again, with the settings and the input that it had"
    )
    return 1 if done.left else 0
