"""Why an execution is where it is: one word for programs, beside the message for people.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["EventReason", "Outcome", "Reason"]


class Outcome(str, Enum):
    """How a runner saw its script end. The operator turns it into a final state."""

    COMPLETE = "Complete"
    STOPPED = "Stopped"
    FAILED = "Failed"

    __str__ = str.__str__


class Reason(str, Enum):
    """The reason of a state, a refusal or a wait (`status.reason`)."""

    COMPLETED = "Completed"
    """`main` returned, or left by `sys.exit(0)`."""
    STOP_REQUESTED = "StopRequested"
    """A user asked for the stop."""
    ENGINE_SHUTDOWN = "EngineShutdown"
    """The embedded engine was shut down in order and stopped its scripts first."""
    ENGINE_LOST = "EngineLost"
    """The embedded engine died while this execution was active: FAILED where nothing of its script is left, UNKNOWN where that is
    not known."""
    LOAD_FAILED = "LoadFailed"
    """The script could not be found, read, compiled or imported."""
    FETCH_FAILED = "FetchFailed"
    """The script could not be fetched from its git repository; the message has git's words."""
    ENVIRONMENT_FAILED = "EnvironmentFailed"
    """The environment that the script's project asks for could not be built; the stack trace has the end of the builder's log."""
    INIT_FAILED = "InitFailed"
    """`init` raised an exception."""
    MAIN_FAILED = "MainFailed"
    """`main` raised an exception, or does not exist."""
    SCRIPT_EXITED = "ScriptExited"
    """The script left by `sys.exit(n)` with n other than 0."""
    PROCESS_EXITED = "ProcessExited"
    """The script's process ended by itself, for example by `os._exit`, before `main` returned."""
    PROCESS_KILLED = "ProcessKilled"
    """A signal that OET did not send ended the script's process."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The kernel killed the script's process because memory ran out."""
    RUNNER_LOST = "RunnerLost"
    """The script's supervisor died; what was left of the script was killed."""
    RUNNER_CUT_OFF = "RunnerCutOff"
    """The script's supervisor was not let near the API server any more, and ended; nothing of the script is left."""
    RUNNER_START_FAILED = "RunnerStartFailed"
    """No runner could be started for this execution."""
    READY_TIMEOUT = "ReadyTimeout"
    """Not READY within `spec.readyTimeoutSeconds`."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """Still active after `spec.activeDeadlineSeconds`."""
    REHEARSAL_UNAVAILABLE = "RehearsalUnavailable"
    """Nothing here keeps a rehearsal away from the real telescope, so it was not begun."""
    SIMULATION_FAILED = "SimulationFailed"
    """The simulated telescope of a rehearsal could not be started; the script was not loaded."""
    SUBARRAY_BUSY = "SubarrayBusy"
    """Another execution is running on the subarray."""
    UNSUPPORTED_SOURCE = "UnsupportedSource"
    """This engine cannot fetch scripts from such a source."""
    INVALID_SPEC = "InvalidSpec"
    """The spec passed the API server and yet means nothing that can be run; the message says what."""
    POD_REJECTED = "PodRejected"
    """Kubernetes refused the Pod: `podTemplate` is wrong, which is final; or a quota is used up, a policy forbids it, and it is
    tried again."""
    POD_START_FAILED = "PodStartFailed"
    """The Pod was created and its container could not be started."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The image that the script was to run in could not be pulled."""
    UNSCHEDULABLE = "Unschedulable"
    """No node takes the Pod."""
    POD_DELETED = "PodDeleted"
    """The Pod was deleted by hand, and its script was stopped."""
    POD_LOST = "PodLost"
    """The Pod's object vanished while its script may have been running; what the script does is not known."""
    EVICTED = "Evicted"
    """The node ended the Pod, for want of resources or because it is drained."""
    ABORT_FAILED = "AbortFailed"
    """The abort script did not end COMPLETE, or could not be created: what the subarray does is not known. An alarm."""
    ABORT_NOT_BEGUN = "AbortNotBegun"
    """The abort script has not begun in time, which is tried on: what the subarray does is not known. An alarm. Also why an abort
    script ended that was held and did not begin when it was told to: another one took its place."""
    NOTHING_TO_ABORT = "NothingToAbort"
    """An abort was asked for with the stop, and no subarray is known to abort. An alarm."""
    ARMING_FAILED = "ArmingFailed"
    """The abort script that was to be held READY could not be, or ended: the next abort takes as long as a start. An alarm."""
    NOT_STARTED = "NotStarted"
    """READY, and not started within `[engine] ready_limit_seconds`."""
    NOT_NEEDED = "NotNeeded"
    """Nothing runs on the subarray any more for which the abort script was held READY."""
    END_UNCONFIRMED = "EndUnconfirmed"
    """The runner reported the end of its script and stayed: it was removed, and what it reported is not believed."""
    END_CONFIRMED = "EndConfirmed"
    """Of an UNKNOWN execution: nothing of its script is left, as was seen later."""
    RELEASED_BY_HAND = "ReleasedByHand"
    """Of an UNKNOWN execution: a person has released its subarray; the message says why."""
    NODE_LOST = "NodeLost"
    """The node that ran the script is not reachable; what the script does is not known."""

    __str__ = str.__str__


class EventReason(str, Enum):
    """What a Kubernetes Event tells of an execution's usual life (its `reason`); Events of trouble have a `Reason`."""

    PLACED = "Placed"
    """Its Pod has a node."""
    READY = "Ready"
    """The script is prepared."""
    STARTED = "Started"
    """`main` has begun."""
    START_REFUSED = "StartRefused"
    """Its subarray was busy; the message names the holder."""
    STOPPING = "Stopping"
    """It is being stopped; the message says for whom, or for what."""
    COMPLETED = "Completed"
    """It ended COMPLETE."""
    STOPPED = "Stopped"
    """It ended STOPPED."""
    FAILED = "Failed"
    """It ended FAILED; the message begins with the reason."""
    UNKNOWN = "Unknown"
    """It ended UNKNOWN; the message begins with the reason."""

    __str__ = str.__str__
