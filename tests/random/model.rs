//! What must hold, as plain data: who was promised what, who holds what, and how a call must be answered. Pure.

use std::collections::BTreeSet;

use kube_sim::kubelet::{Claim, PreparedDevice};

/// Memory slices of a GPU.
pub(crate) const WHOLE: u32 = 8;

/// What a GPU can be cut into here: rest of the device's name, profile, first memory slice and number of them. The last
/// one is the GPU itself.
pub(crate) const CUTS: [(&str, &str, u32, u32); 12] = [
    ("-mig-1g-10gb-0", "1g.10gb", 0, 1),
    ("-mig-1g-10gb-1", "1g.10gb", 1, 1),
    ("-mig-1g-10gb-2", "1g.10gb", 2, 1),
    ("-mig-1g-10gb-5", "1g.10gb", 5, 1),
    ("-mig-1g-10gb-6", "1g.10gb", 6, 1),
    ("-mig-2g-20gb-0", "2g.20gb", 0, 2),
    ("-mig-2g-20gb-2", "2g.20gb", 2, 2),
    ("-mig-2g-20gb-4", "2g.20gb", 4, 2),
    ("-mig-3g-40gb-4", "3g.40gb", 4, 4),
    ("-mig-4g-40gb-0", "4g.40gb", 0, 4),
    ("-mig-7g-80gb-0", "7g.80gb", 0, 8),
    ("", "", 0, WHOLE),
];

/// What an administrator makes: profile, first memory slice and number of them. The last ones sit where others of the driver
/// do, and are of another profile.
pub(crate) const BY_HAND: [(&str, u32, u32); 13] = [
    ("1g.10gb", 0, 1),
    ("1g.10gb", 1, 1),
    ("1g.10gb", 2, 1),
    ("1g.10gb", 5, 1),
    ("1g.10gb", 6, 1),
    ("2g.20gb", 0, 2),
    ("2g.20gb", 2, 2),
    ("2g.20gb", 4, 2),
    ("3g.40gb", 4, 4),
    ("4g.40gb", 0, 4),
    ("1g.20gb", 0, 2),
    ("1g.20gb", 2, 2),
    ("1g.20gb", 4, 2),
];

/// The error of a claim that has other devices than it is allocated.
pub(crate) const REALLOCATED: &str = "has not been unprepared since";

/// A part of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    pub(crate) gpu: usize,
    pub(crate) start: u32,
    pub(crate) size: u32,
    /// The GPU itself, not cut.
    pub(crate) is_whole: bool,
}

impl Part {
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.gpu == other.gpu && self.start < other.start + other.size && other.start < self.start + self.size
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was made for it, or nothing is left.
    Free,
    /// A pod may run with it.
    Prepared,
    /// Its unprepare was refused, or a failed prepare could not be taken back: whatever is left is on record.
    Leaving,
    /// It was prepared in an earlier boot.
    Stale,
}

/// What the kubelet wants of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Prepare,
    Unprepare,
    /// Both at once.
    Race,
}

/// Work that goes on after its call was answered, because a GPU does not answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) is_prepare: bool,
    /// The process that does it.
    pub(crate) driver: usize,
}

/// A GPU whose calls do not come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hung {
    pub(crate) gpu: usize,
    /// All calls, and not only one of those that change it.
    pub(crate) is_whole: bool,
}

/// A ResourceClaim, as the node knows it.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) claim: Claim,
    pub(crate) parts: Vec<Part>,
    pub(crate) answer: Vec<PreparedDevice>,
    pub(crate) state: State,
    /// What it is allocated now, where it still holds what it was allocated before.
    pub(crate) next: Option<(Vec<Part>, Vec<PreparedDevice>)>,
    /// The ResourceClaim is still in the API server.
    pub(crate) exists: bool,
    /// A process that runs on one of its instances: GPU and process id.
    pub(crate) process: Option<(usize, u32)>,
    /// What goes on for it.
    pub(crate) work: Option<Work>,
    /// Parts whose instances an administrator has destroyed since it was prepared.
    pub(crate) lost: Vec<Part>,
}

/// An unmanaged instance.
#[derive(Debug)]
pub(crate) struct Unmanaged {
    pub(crate) part: Part,
    pub(crate) serial: u32,
    /// Without a compute instance.
    pub(crate) is_bare: bool,
}

/// How a call must be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Done,
    /// With an error that has one of these words in it.
    Refused(Vec<String>),
    /// One or the other, or not in time: it depends on when a GPU answers.
    Any(Vec<String>),
}

/// All that is known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) unmanaged: Vec<Unmanaged>,
    pub(crate) api_is_down: bool,
    pub(crate) hung: Option<Hung>,
}

impl Tenant {
    /// One that was just allocated these parts.
    pub(crate) fn new(claim: Claim, parts: Vec<Part>, answer: Vec<PreparedDevice>) -> Self {
        let (state, next, process, work, lost) = (State::Free, None, None, None, Vec::new());
        Self { claim, parts, answer, state, next, exists: true, process, work, lost }
    }

    /// Keeps others from what it was promised.
    pub(crate) fn holds(&self) -> bool {
        matches!(self.state, State::Prepared | State::Leaving) || self.work.is_some()
    }

    /// Work that goes on is on record.
    pub(crate) fn is_recorded(&self) -> bool {
        self.state != State::Free || self.work.is_some()
    }

    /// A pod may run with it, also while a repeated prepare goes on.
    pub(crate) fn is_in_use(&self) -> bool {
        self.state == State::Prepared && self.work.is_none_or(|it| it.is_prepare)
    }

    /// Its instances may be there, or not, or in part.
    pub(crate) fn is_in_between(&self) -> bool {
        self.state == State::Leaving || self.work.is_some()
    }

    /// An instance of a prepared claim that is there.
    pub(crate) fn cut(&self) -> Option<Part> {
        self.parts.iter().find(|it| !it.is_whole && !self.lost.contains(it)).copied()
    }

    pub(crate) fn is_on(&self, gpu: usize) -> bool {
        self.parts.iter().any(|it| it.gpu == gpu)
    }

    /// No call will ask for it: its pod was deleted by force, and its ResourceClaim with it.
    pub(crate) fn is_orphan(&self) -> bool {
        self.is_recorded() && !self.exists
    }

    /// What the scheduler has given it.
    pub(crate) fn is_allocated(&self, part: &Part) -> bool {
        let parts = self.next.as_ref().map_or(&self.parts, |it| &it.0);
        parts.iter().any(|it| it.overlaps(part))
    }

    /// It has another allocation now, and what it had is half taken down or was lost with a reboot: how a prepare is answered
    /// depends on the API server and on what others hold of both.
    pub(crate) fn is_between(&self) -> bool {
        self.next.is_some() && self.state != State::Prepared
    }

    /// Nothing is left of the earlier allocation, so what it is allocated now is what it has next.
    pub(crate) fn becomes(&mut self, state: State) {
        self.state = state;
        self.work = None;
        if state == State::Free {
            self.lost.clear();
        }
        if state == State::Free
            && let Some((parts, answer)) = self.next.take()
        {
            (self.parts, self.answer) = (parts, answer);
        }
    }

    pub(crate) fn needs(&self, part: &Part) -> bool {
        self.parts.iter().any(|it| it.overlaps(part))
    }

    /// The kubelet asks for it: with a pod that is there, or after a restart.
    pub(crate) fn may_be_prepared(&self) -> bool {
        self.exists || self.state == State::Prepared
    }
}

impl Model {
    /// How a prepare must be answered while the claims of `leaving` are unprepared.
    pub(crate) fn prepare(&self, number: usize, leaving: &BTreeSet<usize>) -> Expected {
        let tenant = &self.tenants[number];
        if tenant.state == State::Prepared {
            // Without an API server the record counts.
            if tenant.next.is_some() && !self.api_is_down && tenant.exists {
                return Expected::Refused(vec![REALLOCATED.to_owned()]);
            }
            // What an administrator has destroyed is made again, where there is room for it.
            let is_lost = |part: &Part| tenant.lost.iter().any(|it| it.overlaps(part));
            return match self.unmanaged.iter().any(|it| is_lost(&it.part)) {
                true => Expected::Refused(vec!["is occupied".to_owned()]),
                false => Expected::Done,
            };
        }
        let mut words = Vec::new();
        if tenant.state == State::Free && self.api_is_down {
            words.push("the API server did not show".to_owned());
        }
        for (other, it) in self.tenants.iter().enumerate() {
            let is_in_the_way =
                other != number && it.holds() && it.parts.iter().any(|part| tenant.needs(part));
            if is_in_the_way && !leaving.contains(&other) {
                words.push(it.claim.name.clone());
            }
        }
        for part in self.unmanaged.iter().map(|it| &it.part).filter(|it| tenant.needs(it)) {
            let is_whole = tenant.parts.iter().any(|it| it.is_whole && it.gpu == part.gpu);
            words.push(if is_whole { "still has" } else { "is occupied" }.to_owned());
        }
        if words.is_empty() { Expected::Done } else { Expected::Refused(words) }
    }

    /// How an unprepare must be answered.
    pub(crate) fn unprepare(&self, number: usize) -> Expected {
        let tenant = &self.tenants[number];
        match tenant.process {
            Some((_, pid)) if tenant.holds() => Expected::Refused(vec![format!("process {pid}")]),
            _ => Expected::Done,
        }
    }

    /// How a call must be answered whose GPU, or that of a claim in its way, does not answer.
    pub(crate) fn any(&self, number: usize) -> Expected {
        // A failure for the moment that comes when too little time is left is the answer.
        const ALWAYS: [&str; 7] = [
            "could not be switched",
            " failed with ",
            "still in use",
            "is occupied",
            "still has",
            "the API server did not show",
            REALLOCATED,
        ];
        let mut words: Vec<String> = ALWAYS.map(str::to_owned).into();
        let tenant = &self.tenants[number];
        let others = self.tenants.iter().enumerate().filter(|it| it.0 != number).map(|it| it.1);
        let overlaps = |it: &&Tenant| it.parts.iter().any(|part| tenant.needs(part));
        words.extend(others.filter(overlaps).map(|it| it.claim.name.clone()));
        words.extend(tenant.process.map(|(_, pid)| format!("process {pid}")));
        Expected::Any(words)
    }

    /// True for a claim that has or gets a part of a GPU that does not answer.
    pub(crate) fn is_exposed(&self, number: usize) -> bool {
        self.hung.is_some_and(|it| self.tenants[number].is_on(it.gpu))
    }

    /// True where the answer depends on when a GPU answers: its own, or that of a claim in the way for which something is
    /// wanted or goes on.
    pub(crate) fn is_uncertain(&self, number: usize, wanted: &BTreeSet<usize>) -> bool {
        let tenant = &self.tenants[number];
        let is_in_the_way = |other: &usize| {
            let it = &self.tenants[*other];
            *other != number && it.parts.iter().any(|part| tenant.needs(part))
        };
        let is_open = |other: &usize| {
            self.tenants[*other].work.is_some() || (wanted.contains(other) && self.is_exposed(*other))
        };
        self.is_exposed(number) || (0..self.tenants.len()).filter(is_in_the_way).any(|other| is_open(&other))
    }

    /// A part that the scheduler thinks to be free.
    pub(crate) fn is_unallocated(&self, part: &Part) -> bool {
        !self.tenants.iter().any(|it| it.exists && it.is_allocated(part))
    }

    /// False where a claim has the GPU as a whole, or another unmanaged instance is in the way.
    pub(crate) fn is_open_to_others(&self, part: &Part) -> bool {
        let has_whole = |it: &Tenant| it.parts.iter().any(|own| own.is_whole && own.gpu == part.gpu);
        !self.tenants.iter().any(|it| it.holds() && has_whole(it))
            && !self.unmanaged.iter().any(|it| it.part.overlaps(part))
    }
}
