//! One round: pods are given devices in thought.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::rc::Rc;

use k8s_openapi::jiff::Timestamp;

use super::eligible::Eligibility;
use super::given::Source;
use super::gpu::Score;
use super::kind::{Choice, Kind};
use super::ledger::NodeLedger;
use super::memory::Memory;
use super::offer::Pick;
use super::requests::is_waiting;
use super::shape::{Choices, Need, NodeKey, Pool, Shape, Shapes};
use super::share::Share;
use super::world::{ClaimKey, NodeState, Options, PendingPod, Progress, World, after};

/// Questions to the allocator about pods with several devices in one round.
const MAX_QUESTIONS: usize = 300;
/// Nodes that would do, of which the best is taken, for a pod with several devices.
pub(super) const MAX_FITS: usize = 8;

/// A pod and what becomes of it.
#[derive(Debug)]
pub(super) struct Pod<'w> {
    pub(super) of: &'w PendingPod,
    /// The claim that a hold is for: the first without devices.
    pub(super) claim: ClaimKey,
    /// What it asks for, and where it can be placed; `None` where too many others, or too many of its namespace, were looked at.
    pub(super) asks: Option<(Rc<Shape>, usize)>,
    /// What serves it: source and node.
    pub(super) served: Option<(Source, usize)>,
    /// Whether it was offered a device for long.
    pub(super) is_elsewhere: bool,
    /// Whether nodes were left out when a place for it was looked for, as the questions were used up.
    pub(super) is_unasked: bool,
}

/// One round.
pub(super) struct Round<'w> {
    pub(super) world: &'w World,
    pub(super) options: &'w Options,
    pub(super) now: Timestamp,
    pub(super) nodes: Vec<NodeLedger<'w>>,
    pub(super) pods: Vec<Pod<'w>>,
    pub(super) eligibility: Eligibility<'w>,
    shapes: Shapes<'w>,
    /// The first node with a hold that is in force, by UID of its claim.
    own: HashMap<&'w str, usize>,
    finders: HashMap<(*const Shape, usize, Source), Finder>,
    candidates: HashMap<(*const Shape, usize, Source), Candidates>,
    /// Nodes of which something was taken, in this order.
    touched: Vec<usize>,
    /// What the allocator answered for pods with several devices.
    answers: HashMap<NodeKey, Option<Vec<Pick>>>,
    questions: Share<'w>,
}

/// Nodes that serve a shape from one source, the best first. Entries that are out of date are skipped.
#[derive(Debug, Default)]
struct Finder {
    heap: BinaryHeap<Reverse<(Score, usize, u32)>>,
    /// How much of [`Round::touched`] it knows.
    seen: usize,
}

/// Whether a node serves a pod with several devices.
enum Answer {
    Fits(Vec<Pick>),
    Fails,
    Unasked,
}

/// Nodes that may serve a shape with several devices from one source: one that does not is left out until something of it is taken.
#[derive(Debug, Default)]
struct Candidates {
    nodes: BTreeSet<usize>,
    /// Nodes that the allocator was not asked about, as the questions of the namespace were used up.
    unasked: BTreeSet<usize>,
    /// How much of [`Round::touched`] it knows.
    seen: usize,
}

/// The devices of a kind of GPU that serve a request.
fn of_kind<'a>(choices: &'a Choices, kind: &Kind) -> &'a [Choice] {
    choices.get(&std::ptr::from_ref(kind)).map_or(&[][..], |it| &it[..])
}

impl<'w> Round<'w> {
    /// A round. `written` has the nodes of which the world does not show yet what was written.
    pub(super) fn new(
        world: &'w World,
        written: &'w [Option<NodeState>],
        options: &'w Options,
        memory: &Memory,
        now: Timestamp,
    ) -> Self {
        let node = |(seen, written): (&'w NodeState, &'w Option<NodeState>)| {
            let state = written.as_ref().unwrap_or(seen);
            let changed = memory.nodes.get(state.name()).map(|it| it.changed);
            let follows_until = changed.map(|it| after(it, options.follow_within));
            let may_change = state.follows
                && !state.counts
                && !state.is_a_persons()
                && state.progress == Progress::Done
                && memory.changeable_from(state.name(), options).is_none_or(|it| it <= now);
            let is_counted_on = follows_until.is_some_and(|it| now < it);
            let is_unseen = written.is_some();
            NodeLedger { is_unseen, ..NodeLedger::new(state, is_counted_on, may_change, now) }
        };
        let mut round = Self {
            world,
            options,
            now,
            nodes: world.nodes.iter().zip(written).map(node).collect(),
            pods: Vec::new(),
            eligibility: Eligibility::new(),
            shapes: Shapes::new(world, &options.driver, &memory.compiled),
            own: HashMap::new(),
            finders: HashMap::new(),
            candidates: HashMap::new(),
            touched: Vec::new(),
            answers: HashMap::new(),
            questions: Share::new(MAX_QUESTIONS),
        };
        for (index, node) in round.nodes.iter().enumerate() {
            for hold in node.state.holds.iter().filter(|it| now < it.until && !it.claim.uid.is_empty()) {
                round.own.entry(&hold.claim.uid).or_insert(index);
            }
        }
        let mut order: Vec<&'w PendingPod> = world.pods.iter().collect();
        order.sort_by_key(|it| (Reverse(it.priority), it.created, &it.uid));
        for pod in order {
            let Some(claim) = pod.claims.iter().find(|it| is_waiting(it)) else { continue };
            let asks = round.asks(pod);
            let is_elsewhere = memory.is_elsewhere(&pod.uid, options, now);
            let claim = ClaimKey::of(claim);
            round.pods.push(Pod { of: pod, claim, asks, served: None, is_elsewhere, is_unasked: false });
        }
        round
    }

    /// What a pod asks for, and where it can be placed.
    pub(super) fn asks(&mut self, pod: &'w PendingPod) -> Option<(Rc<Shape>, usize)> {
        let shape = self.shapes.of(pod)?;
        Some((shape, self.eligibility.group(pod, &self.world.nodes)?))
    }

    /// How many kinds of pods it looked at.
    pub(super) fn kinds_of_pods(&self) -> usize {
        self.shapes.count()
    }

    /// Serves pods by what is published, then by what is coming, then by changes.
    pub(super) fn serve(&mut self) {
        // A claim that several pods use is served once.
        let mut claims: BTreeSet<ClaimKey> = BTreeSet::new();
        for source in [Source::Published, Source::Coming, Source::Change] {
            for index in 0..self.pods.len() {
                let pod = &self.pods[index];
                let is_patient = |since: Timestamp| after(since, self.options.patience) <= self.now;
                let counts = source != Source::Change || pod.of.unschedulable.is_some_and(is_patient);
                if pod.served.is_some() || pod.is_elsewhere || !counts || claims.contains(&pod.claim) {
                    continue;
                }
                if let Some(node) = self.serve_one(index, source) {
                    self.pods[index].served = Some((source, node));
                    claims.insert(self.pods[index].claim.clone());
                }
            }
        }
    }

    fn serve_one(&mut self, index: usize, source: Source) -> Option<usize> {
        let (shape, group) = self.pods[index].asks.clone()?;
        let claim = self.pods[index].claim.uid.clone();
        let own = self.own.get(claim.as_str()).copied();
        let (node, picks) = match &shape.need {
            Need::Nothing => return None,
            Need::One(choices) => {
                let at_own = own.and_then(|node| {
                    self.is_possible(node, group, source).then_some(())?;
                    Some((node, self.best(node, choices, source, &claim)?))
                });
                let (node, score) =
                    at_own.or_else(|| self.find(Rc::as_ptr(&shape), choices, group, source))?;
                (node, vec![(score.gpu as usize, score.device as usize)])
            }
            Need::Many => {
                let found = self.find_many(&shape, (group, source), self.pods[index].of, &claim, own);
                self.pods[index].is_unasked |= found.is_none() && self.has_unasked(&shape, group, source);
                found?
            }
        };
        for (gpu, device) in picks {
            match &shape.need {
                Need::One(choices) => {
                    let of = |kind: &Kind| of_kind(choices, kind);
                    self.nodes[node].give_one_of(gpu, device, of, (source, &claim));
                }
                Need::Nothing | Need::Many => self.nodes[node].give(gpu, device, source),
            }
        }
        self.touched.push(node);
        Some(node)
    }

    pub(super) fn is_possible(&self, node: usize, group: usize, source: Source) -> bool {
        let may = source != Source::Change || self.nodes[node].may_change;
        may && self.eligibility.takes(group, node)
    }

    fn best(&self, node: usize, choices: &Choices, source: Source, claim: &str) -> Option<Score> {
        self.nodes[node].best(|kind| of_kind(choices, kind), source, claim)
    }

    /// The best node and device of a source.
    fn find(
        &mut self,
        shape: *const Shape,
        choices: &Choices,
        group: usize,
        source: Source,
    ) -> Option<(usize, Score)> {
        let known = self.finders.remove(&(shape, group, source));
        let is_new = known.is_none();
        let mut finder = known.unwrap_or_default();
        let news: BTreeSet<usize> = if is_new {
            (0..self.nodes.len()).collect()
        } else {
            self.touched[finder.seen..].iter().copied().collect()
        };
        finder.seen = self.touched.len();
        for node in news {
            if self.is_possible(node, group, source)
                && let Some(score) = self.best(node, choices, source, "")
            {
                finder.heap.push(Reverse((score, node, self.nodes[node].version)));
            }
        }
        let found = loop {
            let Some(Reverse((score, node, version))) = finder.heap.peek().copied() else { break None };
            if version == self.nodes[node].version {
                break Some((node, score));
            }
            finder.heap.pop();
        };
        self.finders.insert((shape, group, source), finder);
        found
    }

    /// The best of some nodes for a pod with several devices. `own` is the node with a hold for its claim.
    fn find_many(
        &mut self,
        shape: &Rc<Shape>,
        (group, source): (usize, Source),
        of: &'w PendingPod,
        claim: &str,
        own: Option<usize>,
    ) -> Option<(usize, Vec<Pick>)> {
        let known = self.candidates.remove(&(Rc::as_ptr(shape), group, source));
        let all = || Candidates { nodes: (0..self.nodes.len()).collect(), ..Candidates::default() };
        let mut candidates = known.unwrap_or_else(all);
        candidates.nodes.extend(&self.touched[candidates.seen..]);
        candidates.seen = self.touched.len();
        // What the hold keeps from others is there for its claim.
        candidates.nodes.extend(own);
        if self.questions.is_left(&of.namespace) {
            candidates.nodes.append(&mut candidates.unasked);
        }
        let mut fits = Vec::new();
        let mut failed = Vec::new();
        for &node in &candidates.nodes {
            match self.ask(node, shape, (group, source), &of.namespace, claim) {
                Answer::Fits(picks) => fits.push((node, picks)),
                Answer::Fails => failed.push(node),
                Answer::Unasked => {
                    failed.push(node);
                    candidates.unasked.insert(node);
                }
            }
            if MAX_FITS <= fits.len() || source != Source::Change && !fits.is_empty() {
                break;
            }
        }
        for node in &failed {
            candidates.nodes.remove(node);
        }
        self.candidates.insert((Rc::as_ptr(shape), group, source), candidates);
        let cost = |(node, picks): &(usize, Vec<Pick>)| {
            let withdrawn = |(gpu, device): &Pick| {
                let ledger = &self.nodes[*node].gpus[*gpu];
                (ledger.room.published & ledger.kind.conflicts[*device] & !(1 << device)).count_ones()
            };
            (!self.nodes[*node].changes, picks.iter().map(withdrawn).sum::<u32>())
        };
        fits.into_iter().min_by_key(cost)
    }

    /// Whether nodes were left out when places for a shape were looked for.
    fn has_unasked(&self, shape: &Rc<Shape>, group: usize, source: Source) -> bool {
        let candidates = self.candidates.get(&(Rc::as_ptr(shape), group, source));
        candidates.is_some_and(|it| !it.unasked.is_empty())
    }

    /// Whether a node serves a pod with several devices.
    fn ask(
        &mut self,
        node: usize,
        shape: &Rc<Shape>,
        (group, source): (usize, Source),
        namespace: &'w str,
        claim: &str,
    ) -> Answer {
        let pool = match source {
            Source::Published => Pool::Published,
            Source::Coming => Pool::Coming,
            Source::Change => Pool::Possible,
        };
        let ledger = &self.nodes[node];
        let has_coming = || ledger.gpus.iter().any(|it| it.room.coming != 0);
        if !self.is_possible(node, group, source)
            || source == Source::Coming && !has_coming()
            || source == Source::Change && ledger.state.counts
        {
            return Answer::Fails;
        }
        let key = Shapes::key(shape, ledger, pool, claim);
        let answer = match self.answers.get(&key) {
            Some(answer) => answer.clone(),
            None if !self.questions.take(namespace) => return Answer::Unasked,
            None => {
                let answer = self.shapes.many(shape, ledger, pool, claim);
                self.answers.insert(key, answer.clone());
                answer
            }
        };
        answer.map_or(Answer::Fails, Answer::Fits)
    }

    /// What a pod with several devices would get of a node whose GPUs were empty, except those that are held back.
    pub(super) fn ask_emptied(
        &mut self,
        node: usize,
        shape: &Rc<Shape>,
        namespace: &'w str,
    ) -> Option<Vec<Pick>> {
        let emptied = self.nodes[node].emptied();
        let key = Shapes::key(shape, &emptied, Pool::Published, "");
        // Which devices it would get depends on what stands in their way; that it gets none does not.
        if self.answers.get(&key).is_some_and(Option::is_none) || !self.questions.take(namespace) {
            return None;
        }
        let answer = self.shapes.many(shape, &emptied, Pool::Published, "");
        self.answers.entry(key).or_insert_with(|| answer.clone());
        answer
    }
}
