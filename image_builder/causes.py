"""Known causes of failed builds: by which words they are known, what they are in plain words, what to try.

Sources of the words: the user guide of EC2 Image Builder ("Troubleshoot EC2 Image Builder"), AWS's knowledge centre
on builds that time out, and failures that users reported.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A cause: ``vague`` when the words that it is known by also stand in the end of a step that failed by itself."""

    pattern: str
    what: str
    advice: str
    vague: bool = False


_AGAIN = "run `./inv build-image` again"

# Of what Image Builder says; the first that fits counts.
_OF_AWS = (
    Cause(
        pattern=r"^CANCELLED$",
        what="somebody cancelled it here, in the console or by a call of the API; nothing is wrong with it",
        advice=_AGAIN + " when you want the image",
    ),
    Cause(
        pattern=r"^(DELETED|DISABLED)$",
        what="its images were removed or disabled after it had ended, by pruning or by hand",
        advice=_AGAIN,
    ),
    Cause(
        pattern=r"VcpuLimitExceeded|InstanceLimitExceeded",
        what="the account's quota of running instances leaves no room for the build instance",
        advice="ask AWS for more under Service Quotas, Amazon EC2, wait for other instances to end, or set a smaller "
        "instance_type under image; then " + _AGAIN,
    ),
    Cause(
        pattern=r"InsufficientInstanceCapacity|InsufficientCapacity|UnfulfillableCapacity|"
        r"(?<!\w)Unsupported:.*instance type|not have sufficient \S+ capacity",
        what="AWS has no instance of the build's type in that zone now",
        advice=f"wait some minutes and {_AGAIN}, or set another instance_type under image and run `pulumi up`",
    ),
    Cause(
        pattern=r"instanceProfileName.*not valid|instance profile.*(not valid|not exist|not found|cannot be found)|"
        r"Invalid IAM Instance Profile|InvalidIamInstanceProfile|parameter iamInstanceProfile",
        what="AWS does not know the instance profile of the build instance",
        advice=f"after a `pulumi up` IAM needs some minutes: wait and {_AGAIN}; if it stays so, run `pulumi up`",
    ),
    Cause(
        pattern=r"SSM Agent verification failed|Systems Manager Agent.*(not|fail)|"
        r"InvalidInstanceI[dD].*(not in a valid state|Undeliverable)|Instances? .* not in a valid state for account|"
        r"CommandInvocations.*LaunchBuildInstance|LaunchBuildInstance.*(TimedOut|timed out)|"
        r"BootstrapBuildInstance.*(TimedOut|timed out|fail)",
        what="the instance started, but never reported to AWS Systems Manager, through which it is given its work",
        advice="the instance profile needs both EC2InstanceProfileForImageBuilder and AmazonSSMManagedInstanceCore, "
        "and the subnet a way to Systems Manager (a public address, a NAT gateway, or endpoints for ssm, ssmmessages "
        "and ec2messages), and port 443 open outwards: mend that, then " + _AGAIN,
    ),
    Cause(
        pattern=r"InvalidAMIName\.Duplicate|AMI name .* already in use",
        what="an image of that very name is there already",
        advice=f"{_AGAIN}; if it happens again, the name in the distribution configuration lacks its "
        "{{ imagebuilder:buildDate }}: run `pulumi up`",
    ),
    Cause(
        pattern=r"AMI(s)? quota|Amis? .*limit|ResourceLimitExceeded|SnapshotLimitExceeded|AMI.*maximum.*reached|"
        r"ConcurrentSnapshotLimitExceeded|ServiceQuotaExceeded|quota .*exceeded",
        what="a quota of the account is reached: of images, snapshots, or copies under way",
        advice="remove old images with `./inv prune-images --keep 2 --yes`, wait for copies under way, or ask AWS for "
        "more under Service Quotas; then " + _AGAIN,
    ),
    Cause(
        pattern=r"EC2ImageBuilderDistributionCrossAccountRole|not authorized to perform: sts:AssumeRole",
        what="Image Builder may not copy the image to another account",
        advice="take the account out of the distribution configuration, or give it the role that AWS names; then "
        + _AGAIN,
    ),
    Cause(
        pattern=r"KMS|kms:|KeyUnavailable|InvalidKMSKey",
        what="the key that disks are encrypted with cannot be used",
        advice="let Image Builder's service role use the key, or use the account's default key for EBS; then " + _AGAIN,
    ),
    Cause(
        pattern=r"(NoSuchKey|NoSuchBucket|HeadObject|S3 (object|download|bucket)).*(not|Not|fail|denied|exist)|"
        r"NoSuchKey|NoSuchBucket",
        what="something that the build fetches from S3 is not there, or its instance profile may not read it",
        advice="`./inv build-image` puts the kit there and `pulumi up` the long documents and the right to read them: "
        "run `pulumi up`, then " + _AGAIN,
        vague=True,
    ),
    Cause(
        pattern=r"AMI .*in state 'failed'|CreateOutputAMI|Exception from CreateImage",
        what="AWS could not make an image of the build instance",
        advice=_AGAIN + "; if it happens again, look at the volume and its encryption key in what AWS says below",
    ),
    Cause(
        pattern=r"(ParameterNotFound|parent image|InvalidAMIID|parentImage).*",
        what="the image that the build starts from is not to be had in this region",
        advice="set another base under image and run `pulumi up`, then " + _AGAIN,
    ),
    Cause(
        pattern=r"UnauthorizedOperation|AccessDenied|not authorized to perform",
        what="a right is missing to Image Builder's service role or to the instance profile",
        advice="what AWS says below names it: run `pulumi up`, which grants what is needed, then " + _AGAIN,
        vague=True,
    ),
    Cause(
        pattern=r"Client\.InternalError|Instance .*(terminated|shutting-down|shut down|stopped) (unexpectedly|before)|"
        r"instance .*(was|has been) terminated|is not in (a )?state 'running'",
        what="the build instance ended before its work did",
        advice=f"look whether somebody or a budget rule ends instances of this account, then {_AGAIN}",
        vague=True,
    ),
    Cause(
        pattern=r"InternalError|InternalFailure|Internal (service|server) error|ServiceException|service unavailable|"
        r"[Uu]nexpected error|[Ii]nternal error",
        what="AWS had a fault of its own",
        advice=_AGAIN,
        vague=True,
    ),
    Cause(
        pattern=r"RequestLimitExceeded|Throttl|Rate exceeded",
        what="too much was asked of AWS at once in this account",
        advice=f"wait some minutes, then {_AGAIN}",
        vague=True,
    ),
    Cause(
        pattern=r"TimedOut|[Tt]imed out",
        what="AWS waited in vain for the instance",
        advice="where the log below has no line of a document, the instance did not reach Systems Manager: look at the "
        "policies of the instance profile (AmazonSSMManagedInstanceCore) and at the subnet's way out; then " + _AGAIN,
        vague=True,
    ),
)

# Of what a step printed before it failed, and of what AWS says of it; the first that fits counts.
_ON_MACHINE = (
    Cause(
        pattern=r"No space left on device",
        what="the disk of the build instance is full",
        advice="raise volume_gb under image, run `pulumi up`, then " + _AGAIN,
    ),
    Cause(
        pattern=r"Could not get lock|dpkg frontend lock|is another process using it",
        what="another program on the instance installs packages and holds the lock",
        advice=_AGAIN,
    ),
    Cause(
        pattern=r"Temporary failure (in name resolution|resolving)|Could not resolve host|Network is unreachable|"
        r"Failed to establish a new connection|Connection timed out|CondaHTTPError|ConnectionError|"
        r"Max retries exceeded|Connection refused|Name or service not known",
        what="the instance does not reach a server that the step needs",
        advice="give the subnet a way to the internet (a public address or a NAT gateway) and let the security group "
        f"out; where only that server was away, {_AGAIN}",
    ),
    Cause(
        pattern=r"ResolvePackageNotFound|PackagesNotFoundError|LibMambaUnsatisfiableError|UnsatisfiableError|"
        r"No matching distribution found|ResolutionImpossible|Could not find a version that satisfies|Pip failed",
        what="the packages that the kit asks for cannot be installed together, or do not exist",
        advice="mend the kit's environment file (`./inv bake-image --local DIR` tries it on this machine for nothing), "
        "run `pulumi up`, then " + _AGAIN,
    ),
    Cause(
        pattern=r"AccessDenied|not authorized to perform|ParameterNotFound|can't find the specified secret",
        what="the instance may not read what the step fetches, or it is not there",
        advice="look at data_secret and data_source under image, run `pulumi up`, which grants the right to read them, "
        "then " + _AGAIN,
    ),
    Cause(
        pattern=r"NoSuchKey|NoSuchBucket|HeadObject operation: Not Found|404 Not Found|HTTP Error 404",
        what="something that the step fetches is not there",
        advice=f"look at the address in the lines below; the kit's archive is brought by `./inv build-image`: {_AGAIN}",
    ),
    Cause(
        pattern=r"Permission denied \(publickey\)|could not read Username|Authentication failed|Repository not found",
        what="the kit's repository cannot be read without a login",
        advice="give a folder of this machine as kit under image, or an address that anybody can read",
    ),
    Cause(
        pattern=r"NVIDIA-SMI has failed|No devices were found|CUDA driver version is insufficient|sees no GPU",
        what="the GPU cannot be used: the driver does not fit the instance or the kit's packages",
        advice="look whether instance_type under image has an NVIDIA GPU and which driver the packages need",
    ),
    Cause(
        pattern=r"MemoryError|Cannot allocate memory|Out of memory|oom-kill|\bKilled\b|exit code 137|status 137",
        what="the memory of the instance ran out",
        advice="set a larger instance_type under image, run `pulumi up`, then " + _AGAIN,
    ),
    Cause(
        pattern=r"[Tt]imed ?[Oo]ut|time limit|exceeded.*timeout|exit code 124",
        what="the step took longer than its time limit",
        advice="look at its last lines below for what it waited for; where it only needs longer, raise timeoutSeconds "
        "in a document of your own under documents, or set a larger instance_type under image",
    ),
)
_STEP_TESTED = Cause(
    pattern="",
    what="the new image was made, but does not run the kit as it should; it was not given out",
    advice="the lines below say what is wrong; mend the kit or its environment, run `pulumi up`, then " + _AGAIN,
)
_STEP_BUILT = Cause(
    pattern="",
    what="a command of it failed",
    advice="the lines below say why; mend the kit, its environment or the document, run `pulumi up`, then " + _AGAIN,
)


def cause_of(text: str) -> Cause | None:
    """Return the cause that AWS's words tell, None when they tell none."""
    return next((cause for cause in _OF_AWS if re.search(cause.pattern, text, re.DOTALL)), None)


def cause_on_machine(text: str, *, testing: bool) -> Cause:
    """Return the cause that the last lines of a step tell.

    Args:
        text: what the step printed last, and what AWS says.
        testing: whether the step tested a new image.
    """
    usual = _STEP_TESTED if testing else _STEP_BUILT
    return next((cause for cause in _ON_MACHINE if re.search(cause.pattern, text)), usual)
