//! Why there are events, of what, and what each is called.

/// Why there is an event. A closed set, so that alerts can name them; docs/troubleshooting.md has them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventReason {
    /// The state file of a claim cannot be read.
    UnreadableState,
    /// The layout that the node's label asks for is impossible.
    LayoutRefused,
    /// The layout that the node's label asks for changes nothing here.
    LayoutHasNoEffect,
    /// The layout is in force as far as claims and GPUs allow.
    LayoutPending,
    /// The layout is in force.
    LayoutApplied,
    /// Another program writes the label that says how a layout stands.
    MigManagerDetected,
    /// The API server no longer keeps counters, so layouts decide what is published.
    CountersDropped,
    /// The API server keeps counters again, so everything is published.
    CountersKept,
    /// A GPU has had an error that no application causes.
    GpuUnhealthy,
    /// A GPU does not answer.
    GpuLost,
    /// What happens to a GPU is not noticed.
    GpuUnmonitored,
    /// None of these any more.
    GpuRecovered,
    /// What a claim has, has had an error that no application causes.
    DeviceUnhealthy,
    /// A program on what a claim has, has made an error.
    DeviceError,
    /// A GPU instance that no claim of this driver made: what it occupies is not offered.
    UnmanagedInstance,
    /// A GPU cannot be read or used: only what claims hold of it stays published.
    GpuNotOffered,
    /// It can be again.
    GpuOffered,
    /// Something on the host keeps claims from being prepared: devices are withheld.
    HostNotReady,
    /// Something on the host keeps containers from working as they should; claims are prepared all the same.
    HostDegraded,
    /// One of these has passed.
    HostRecovered,
    /// A call into NVML does not return.
    NvmlHung,
    /// It has returned.
    NvmlRecovered,
    /// The API server, or a policy in it, refuses a ResourceSlice, or its name is taken.
    PublishRefused,
    /// Another writer keeps changing or deleting the node's ResourceSlices.
    SlicesOverwritten,
    /// A claim cannot be prepared, and asking again will not change that.
    PrepareImpossible,
    /// A claim waits for a part of a GPU that another one still holds.
    PrepareWaits,
    /// Preparing a claim takes longer than a call of the kubelet, and goes on.
    PrepareContinues,
    /// It has ended: the devices are ready.
    PrepareFinished,
    /// A MIG instance that was not made for the claim is where its device would be.
    DeviceOccupied,
    /// Preparing a claim failed after its call had been answered, and nothing was taken back: nothing was created for it, or it
    /// keeps what it has.
    PrepareFailed,
    /// What was begun for a claim, by a process that ended or by a call that was answered before, was taken back; the kubelet's
    /// next call tries again.
    PrepareUndone,
    /// What a process that ended had begun was brought to its end: the claim has nothing here any more.
    UnprepareFinished,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The node.
    Node,
    /// A ResourceClaim; events about its device are also written for its pods, if they are known.
    Claim,
}

impl EventReason {
    /// All of them.
    pub const ALL: [Self; 32] = [
        Self::UnreadableState,
        Self::LayoutRefused,
        Self::LayoutHasNoEffect,
        Self::LayoutPending,
        Self::LayoutApplied,
        Self::MigManagerDetected,
        Self::CountersDropped,
        Self::CountersKept,
        Self::UnmanagedInstance,
        Self::GpuNotOffered,
        Self::GpuOffered,
        Self::HostNotReady,
        Self::HostDegraded,
        Self::HostRecovered,
        Self::NvmlHung,
        Self::NvmlRecovered,
        Self::GpuUnhealthy,
        Self::GpuLost,
        Self::GpuUnmonitored,
        Self::GpuRecovered,
        Self::DeviceUnhealthy,
        Self::DeviceError,
        Self::PublishRefused,
        Self::SlicesOverwritten,
        Self::PrepareImpossible,
        Self::PrepareWaits,
        Self::PrepareContinues,
        Self::PrepareFinished,
        Self::DeviceOccupied,
        Self::PrepareFailed,
        Self::PrepareUndone,
        Self::UnprepareFinished,
    ];

    /// The event's `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnreadableState => "UnreadableState",
            Self::LayoutRefused => "LayoutRefused",
            Self::LayoutHasNoEffect => "LayoutHasNoEffect",
            Self::LayoutPending => "LayoutPending",
            Self::LayoutApplied => "LayoutApplied",
            Self::MigManagerDetected => "MigManagerDetected",
            Self::CountersDropped => "CountersDropped",
            Self::CountersKept => "CountersKept",
            Self::GpuUnhealthy => "GpuUnhealthy",
            Self::GpuLost => "GpuLost",
            Self::GpuUnmonitored => "GpuUnmonitored",
            Self::GpuRecovered => "GpuRecovered",
            Self::DeviceUnhealthy => "DeviceUnhealthy",
            Self::DeviceError => "DeviceError",
            Self::UnmanagedInstance => "UnmanagedInstance",
            Self::GpuNotOffered => "GpuNotOffered",
            Self::GpuOffered => "GpuOffered",
            Self::HostNotReady => "HostNotReady",
            Self::HostDegraded => "HostDegraded",
            Self::HostRecovered => "HostRecovered",
            Self::NvmlHung => "NvmlHung",
            Self::NvmlRecovered => "NvmlRecovered",
            Self::PublishRefused => "PublishRefused",
            Self::SlicesOverwritten => "SlicesOverwritten",
            Self::PrepareImpossible => "PrepareImpossible",
            Self::PrepareWaits => "PrepareWaits",
            Self::PrepareContinues => "PrepareContinues",
            Self::PrepareFinished => "PrepareFinished",
            Self::DeviceOccupied => "DeviceOccupied",
            Self::PrepareFailed => "PrepareFailed",
            Self::PrepareUndone => "PrepareUndone",
            Self::UnprepareFinished => "UnprepareFinished",
        }
    }

    /// Whether the event is a warning.
    #[must_use]
    pub fn is_warning(self) -> bool {
        match self {
            Self::UnreadableState
            | Self::LayoutRefused
            | Self::LayoutHasNoEffect
            | Self::MigManagerDetected
            | Self::CountersDropped
            | Self::UnmanagedInstance
            | Self::GpuNotOffered
            | Self::HostNotReady
            | Self::HostDegraded
            | Self::NvmlHung
            | Self::GpuUnhealthy
            | Self::GpuLost
            | Self::GpuUnmonitored
            | Self::DeviceUnhealthy
            | Self::PublishRefused
            | Self::SlicesOverwritten
            | Self::DeviceOccupied
            | Self::PrepareFailed
            | Self::PrepareImpossible => true,
            Self::LayoutPending
            | Self::LayoutApplied
            | Self::CountersKept
            | Self::GpuOffered
            | Self::HostRecovered
            | Self::NvmlRecovered
            | Self::GpuRecovered
            | Self::DeviceError
            | Self::PrepareWaits
            | Self::PrepareContinues
            | Self::PrepareFinished
            | Self::PrepareUndone
            | Self::UnprepareFinished => false,
        }
    }

    /// What it is about.
    #[must_use]
    pub fn subject(self) -> Subject {
        match self {
            Self::PrepareImpossible
            | Self::PrepareWaits
            | Self::PrepareContinues
            | Self::PrepareFinished
            | Self::DeviceOccupied
            | Self::PrepareFailed
            | Self::PrepareUndone
            | Self::UnprepareFinished
            | Self::DeviceUnhealthy
            | Self::DeviceError => Subject::Claim,
            _ => Subject::Node,
        }
    }

    /// The event's `action`: what the driver was about.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::UnreadableState | Self::PrepareUndone | Self::UnprepareFinished => "Recover",
            Self::LayoutRefused
            | Self::LayoutHasNoEffect
            | Self::LayoutPending
            | Self::LayoutApplied
            | Self::MigManagerDetected
            | Self::CountersDropped
            | Self::CountersKept => "Layout",
            Self::UnmanagedInstance
            | Self::GpuNotOffered
            | Self::GpuOffered
            | Self::HostNotReady
            | Self::HostDegraded
            | Self::HostRecovered => "Offer",
            Self::NvmlHung
            | Self::NvmlRecovered
            | Self::GpuUnhealthy
            | Self::GpuLost
            | Self::GpuUnmonitored
            | Self::GpuRecovered
            | Self::DeviceUnhealthy
            | Self::DeviceError => "Watch",
            Self::PublishRefused | Self::SlicesOverwritten => "Publish",
            Self::PrepareImpossible
            | Self::PrepareWaits
            | Self::PrepareContinues
            | Self::PrepareFinished
            | Self::PrepareFailed
            | Self::DeviceOccupied => "Prepare",
        }
    }
}
