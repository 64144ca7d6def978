"""What ``./inv doctor`` looks at for an event on Dask: its certificates, its scheduler, the slots. Changes nothing.

Whether versions and kit of every host are right is found out by what prepares the event, which doctor calls as well.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from runner.dask.certificates import certificates_for
from runner.dask.cluster import open_cluster
from runner.findings import Finding, State, check_by


def findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what there is to say of a worker's config, up to the first thing without which no more can be seen."""
    if config.get("cluster") or config["dask_scheduler"] == "local":
        return  # there is nothing before the event starts it
    certificates = check_by("certificates", lambda: _certificates(config))
    yield certificates
    if certificates.state is State.OK:
        scheduler = check_by("scheduler", lambda: _scheduler(config))
        yield scheduler


def _certificates(config: Mapping[str, Any]) -> str:
    found = certificates_for(config, make=False)
    if found is None:
        return "none: the scheduler speaks plain tcp"
    return f"{found.of('client').cert} is valid and signed by {found.of('client').ca}"


def _scheduler(config: Mapping[str, Any]) -> str:
    cluster = open_cluster(config)
    with cluster.connect() as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        slots = sum(int(worker["resources"].get("ramp", worker["nthreads"])) for worker in workers)
        hosts = {worker["host"] for worker in workers}
    cluster.close(keep=True)
    return f"{config['dask_scheduler']} answers: {slots} slots on {len(hosts)} hosts"
