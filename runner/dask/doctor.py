"""What ``./inv doctor`` looks at for an event on Dask: its certificates, its scheduler, every worker. Changes nothing.

Of a cluster that is made for the event there is nothing before the event starts it; there doctor looks at what it would
be made of.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from runner.aws.machines import Patience
from runner.dask.certificates import Certificates, certificates_for
from runner.dask.cluster import open_cluster
from runner.dask.session import DaskSession
from runner.errors import WorkerError
from runner.findings import Finding, State, check_by


def findings(config: Mapping[str, Any], *, launch: bool = False) -> Iterator[Finding]:
    """Yield what there is to say of a worker's config, up to the first thing without which no more can be seen.

    Args:
        config: the worker's dict.
        launch: whether to start a cluster that is made for the event, with one worker, and end it again.
    """
    looks = {"certificates": _certificates, "scheduler": _scheduler, "workers": _workers}
    if config.get("cluster"):
        looks = {"machines": _machines, **({"workers": _workers} if launch else {})}
    elif config["dask_scheduler"] == "local":
        looks = {"workers": _workers}
    for name, look in looks.items():
        finding = check_by(name, partial(look, config))
        yield finding
        if finding.state is State.WRONG:
            return


def _certificates(config: Mapping[str, Any]) -> str:
    found = certificates_for(config, make=False)
    if found is None:
        return "none: the scheduler speaks plain tcp"
    return f"{found.of('client').cert} is valid and signed by {found.of('client').ca}"


def _scheduler(config: Mapping[str, Any]) -> str:
    cluster = open_cluster(config)
    with cluster.connect() as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
    cluster.close(keep=True)
    if not workers:
        msg = f"{config['dask_scheduler']} answers and has no worker; start some: `./inv dask-worker`"
        raise WorkerError(msg)
    return f"{config['dask_scheduler']} answers and has {_counted(len(workers), 'worker')}"


def _workers(config: Mapping[str, Any]) -> str:
    session = DaskSession(config, open_cluster(config))
    session.open()  # a worker that differs, or lacks the kit, is an error that names it
    try:
        hosts = session.hosts()
    finally:
        session.close()
    slots = sum(host["slots"] for host in hosts)
    lines = [f"{_counted(slots, 'slot')} on {_counted(len({host['host'] for host in hosts}), 'host')}"]
    return "\n".join(lines + [_line(host) for host in sorted(hosts, key=lambda host: str(host["address"]))])


def _line(host: Mapping[str, Any]) -> str:
    versions = f"Python {host['python']}, distributed {host['distributed']}, ramp-workflow {host['ramp_workflow']}"
    return f"{host['address']}: {_counted(host['slots'], 'slot')}, {versions}, kit {host['kit']}"


def _machines(config: Mapping[str, Any]) -> str:
    """Say whether a cluster could be made; asks AWS, and launches nothing."""
    cluster = config["cluster"]
    if cluster["provider"] == "fargate":
        from runner.dask.fargate import FargateDask  # here, since dask-cloudprovider takes a while to import

        return FargateDask(config).describe()
    from runner.dask.fleet import Fleet
    from runner.dask.programs import Limits

    # Nothing runs, so that nobody needs a key or has a limit.
    limits = Limits(idle=0.0, death=0.0, life=1)
    fleet = Fleet(config, Certificates(roles={}), limits=limits, patience=Patience())
    try:
        fleet.open()
    finally:
        fleet.close(keep=True)
    return (
        f"key, image, subnets and groups are there for up to {_counted(cluster['max'], 'worker')} of "
        f"{_counted(cluster['slots_per_machine'], 'slot')} each; --launch starts a cluster with one and ends it again"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
