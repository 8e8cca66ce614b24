//! The sequences that wait, and who of them is next: priorities, then fairness, then arrival.
//!
//! In: arrivals, preempted sequences, service that tenants got. Out: candidates in order. Fairness
//! is the Virtual Token Counter (Sheng et al., OSDI 2024): each tenant has a counter of weighted
//! tokens that it was served, and who has the smallest is next. A tenant that comes back is lifted
//! to the smallest counter of those that wait, less a small credit, so that nobody saves up much
//! service by being idle.

use crate::sequence::Sequence;
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use weft_types::SeqId;

/// A tenant, as a small number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TenantId(u32);

/// One token of a tenant of weight 1, in the unit of counters: weights are fractions of it.
const UNIT: f64 = 1024.0;
/// Idle tenants that are remembered: those whose counter was above all that waited.
const MAX_IDLE_TENANTS: usize = 10_000;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Rank {
    priority: i32,
    counter: u64,
    tenant: TenantId,
}

/// What is smaller goes first: priority, then the tenant's counter, then arrival.
pub(crate) type Urgency = (i32, u64, u64);

struct Tenant {
    name: Arc<str>,
    weight: f64,
    counter: u64,
    /// By priority, then arrival.
    waiting: VecDeque<Sequence>,
    num_running: usize,
    /// Candidates that this scan has passed over.
    num_passed: usize,
    /// Where it is in `order`, while anything waits.
    rank: Option<Rank>,
}

/// See the module.
pub(crate) struct WaitingQueue {
    tenants: Vec<Option<Tenant>>,
    free_ids: Vec<TenantId>,
    by_name: FxHashMap<Arc<str>, TenantId>,
    weights: FxHashMap<Arc<str>, f64>,
    /// How far below the others a tenant's counter may be when it comes back, in their unit.
    credit: u64,
    /// Tenants with candidates that this scan has not passed over.
    order: BTreeSet<Rank>,
    /// Tenants of which this scan has passed over some.
    passed: Vec<TenantId>,
    len: usize,
    num_idle_tenants: usize,
    /// The counter of the tenant that left last.
    last_left: u64,
}

impl WaitingQueue {
    /// `weights`: tenants' shares; others have 1. `burst_tokens`: what a tenant that comes back may
    /// have ahead of the others.
    pub(crate) fn new(weights: &[(Arc<str>, f64)], burst_tokens: u64) -> Self {
        Self {
            tenants: Vec::new(),
            free_ids: Vec::new(),
            by_name: FxHashMap::default(),
            weights: weights.iter().cloned().collect(),
            credit: (burst_tokens as f64 * UNIT) as u64,
            order: BTreeSet::new(),
            passed: Vec::new(),
            len: 0,
            num_idle_tenants: 0,
            last_left: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All that wait, tenant by tenant.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.tenants.iter().flatten().flat_map(|tenant| &tenant.waiting)
    }

    /// The tenant of that name, with one sequence more that waits or runs.
    pub(crate) fn enter(&mut self, name: &Arc<str>) -> TenantId {
        let id = match self.by_name.get(name) {
            Some(&id) => id,
            None => self.insert(name),
        };
        let least = self.least_counter().map(|least| least.saturating_sub(self.credit));
        let floor = least.unwrap_or(self.last_left.saturating_sub(self.credit));
        let tenant = self.tenant_mut(id);
        let was_idle = tenant.waiting.is_empty() && tenant.num_running == 0;
        if tenant.waiting.is_empty() {
            // None of its own waits: it may not use what it saved while it asked for nothing.
            tenant.counter = tenant.counter.max(if was_idle { floor } else { least.unwrap_or(0) });
        }
        self.num_idle_tenants -= usize::from(was_idle);
        id
    }

    fn insert(&mut self, name: &Arc<str>) -> TenantId {
        let weight = self.weights.get(name).copied().unwrap_or(1.0);
        let tenant = Tenant {
            name: Arc::clone(name),
            weight: weight.max(1e-3),
            counter: 0,
            waiting: VecDeque::new(),
            num_running: 0,
            num_passed: 0,
            rank: None,
        };
        let id = self.free_ids.pop().unwrap_or(TenantId(self.tenants.len() as u32));
        if id.0 as usize == self.tenants.len() {
            self.tenants.push(None);
        }
        self.tenants[id.0 as usize] = Some(tenant);
        self.by_name.insert(Arc::clone(name), id);
        self.num_idle_tenants += 1;
        id
    }

    /// Queues a sequence of a tenant that was entered with it: behind those of its priority that
    /// came before it. Also one that ran already.
    pub(crate) fn push(&mut self, seq: Sequence) {
        let id = seq.tenant;
        let tenant = self.tenant_mut(id);
        let key = (seq.priority, seq.arrival);
        let at = tenant.waiting.partition_point(|other| (other.priority, other.arrival) < key);
        tenant.waiting.insert(at, seq);
        self.len += 1;
        self.rank(id);
    }

    /// Makes candidates of all that wait.
    pub(crate) fn begin_scan(&mut self) {
        while let Some(id) = self.passed.pop() {
            if let Some(Some(tenant)) = self.tenants.get_mut(id.0 as usize) {
                tenant.num_passed = 0;
                self.rank(id);
            }
        }
    }

    /// The next candidate that this scan has not passed over: of the tenant with the smallest
    /// counter.
    pub(crate) fn candidate(&mut self) -> Option<&mut Sequence> {
        let id = self.order.first()?.tenant;
        let tenant = self.tenant_mut(id);
        let index = tenant.num_passed;
        tenant.waiting.get_mut(index)
    }

    /// Leaves the candidate where it is, for the rest of this scan.
    pub(crate) fn pass(&mut self) {
        let Some(id) = self.order.first().map(|rank| rank.tenant) else { return };
        let tenant = self.tenant_mut(id);
        tenant.num_passed += 1;
        if tenant.num_passed == 1 {
            self.passed.push(id);
        }
        self.rank(id);
    }

    /// Takes the candidate out. It counts as running.
    pub(crate) fn pop(&mut self) -> Option<Sequence> {
        let id = self.order.first()?.tenant;
        let tenant = self.tenant_mut(id);
        let index = tenant.num_passed;
        let seq = tenant.waiting.remove(index)?;
        tenant.num_running += 1;
        self.len -= 1;
        self.rank(id);
        Some(seq)
    }

    /// A running sequence waits again: to be pushed.
    pub(crate) fn stop_running(&mut self, id: TenantId) {
        self.tenant_mut(id).num_running -= 1;
    }

    /// A running sequence is gone.
    pub(crate) fn leave(&mut self, id: TenantId) {
        self.tenant_mut(id).num_running -= 1;
        self.retire(id);
    }

    /// Takes out a waiting sequence that is not wanted any more.
    pub(crate) fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let (index, at) = self.tenants.iter().enumerate().find_map(|(index, tenant)| {
            let at = tenant.as_ref()?.waiting.iter().position(|seq| seq.id == id)?;
            Some((index, at))
        })?;
        let tenant_id = TenantId(index as u32);
        let tenant = self.tenant_mut(tenant_id);
        let seq = tenant.waiting.remove(at)?;
        tenant.num_passed -= usize::from(at < tenant.num_passed);
        self.len -= 1;
        self.rank(tenant_id);
        self.retire(tenant_id);
        Some(seq)
    }

    /// A tenant was served so many tokens.
    pub(crate) fn charge(&mut self, id: TenantId, num_tokens: u64) {
        let tenant = self.tenant_mut(id);
        let service = (num_tokens as f64 * UNIT / tenant.weight) as u64;
        tenant.counter = tenant.counter.saturating_add(service);
        if tenant.rank.is_some() {
            self.rank(id);
        }
    }

    /// Counters, in tokens of weight 1, of all tenants that are known.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (&Arc<str>, f64)> {
        let tenants = self.tenants.iter().flatten();
        tenants.map(|tenant| (&tenant.name, tenant.counter as f64 / UNIT))
    }

    /// How far a tenant is ahead of another, in tokens of weight 1.
    pub(crate) fn lead(&self, ahead: TenantId, behind: TenantId) -> f64 {
        self.counter(ahead).saturating_sub(self.counter(behind)) as f64 / UNIT
    }

    /// How urgent a sequence that runs is.
    pub(crate) fn urgency(&self, seq: &Sequence) -> Urgency {
        (seq.priority, self.counter(seq.tenant), seq.arrival)
    }

    /// How urgent it is to run one of a tenant, whenever it came.
    pub(crate) fn urgency_of(&self, id: TenantId, priority: i32) -> Urgency {
        (priority, self.counter(id), u64::MAX)
    }

    /// Whether a tenant would, with one running sequence more, still not have more for its weight
    /// than another with one less.
    pub(crate) fn has_smaller_share(&self, id: TenantId, other: TenantId) -> bool {
        let share = |id: TenantId, more: f64| {
            self.tenant(id).map_or(0.0, |tenant| (tenant.num_running as f64 + more) / tenant.weight)
        };
        id != other && share(id, 1.0) <= share(other, -1.0)
    }

    fn counter(&self, id: TenantId) -> u64 {
        self.tenant(id).map_or(0, |tenant| tenant.counter)
    }

    fn tenant(&self, id: TenantId) -> Option<&Tenant> {
        self.tenants.get(id.0 as usize)?.as_ref()
    }

    /// The smallest counter of a tenant that waits: the first of each priority is its smallest.
    fn least_counter(&self) -> Option<u64> {
        let mut least: Option<u64> = None;
        let mut next = self.order.first();
        while let Some(&Rank { priority, counter, .. }) = next {
            least = Some(least.map_or(counter, |least| least.min(counter)));
            let last = Rank { priority, counter: u64::MAX, tenant: TenantId(u32::MAX) };
            next = self.order.range(last..).next();
        }
        least
    }

    /// Puts the tenant where its next candidate and its counter belong.
    fn rank(&mut self, id: TenantId) {
        let Some(Some(tenant)) = self.tenants.get_mut(id.0 as usize) else { return };
        let next = tenant.waiting.get(tenant.num_passed);
        let rank =
            next.map(|seq| Rank { priority: seq.priority, counter: tenant.counter, tenant: id });
        let before = std::mem::replace(&mut tenant.rank, rank);
        if before != rank {
            if let Some(before) = before {
                self.order.remove(&before);
            }
            self.order.extend(rank);
        }
    }

    /// Notes that a tenant may be idle, and forgets tenants that need not be remembered.
    fn retire(&mut self, id: TenantId) {
        let tenant = self.tenant_mut(id);
        if !tenant.waiting.is_empty() || tenant.num_running > 0 {
            return;
        }
        let counter = tenant.counter;
        self.last_left = counter;
        self.num_idle_tenants += 1;
        let floor = self.least_counter().unwrap_or(counter).saturating_sub(self.credit);
        // At or below the floor it would be lifted there anyway.
        if counter <= floor || self.num_idle_tenants > MAX_IDLE_TENANTS {
            self.num_idle_tenants -= 1;
            if let Some(tenant) = self.tenants[id.0 as usize].take() {
                self.by_name.remove(&tenant.name);
                self.passed.retain(|passed| *passed != id);
                self.free_ids.push(id);
            }
        }
    }

    fn tenant_mut(&mut self, id: TenantId) -> &mut Tenant {
        match &mut self.tenants[id.0 as usize] {
            Some(tenant) => tenant,
            None => unreachable!("{id:?} is held by whoever asks"),
        }
    }

    /// Checks that the counts and the order are those of the tenants.
    pub(crate) fn check_integrity(&self, running: &[Sequence]) -> Result<(), String> {
        let (mut len, mut idle) = (0, 0);
        for (index, tenant) in self.tenants.iter().enumerate() {
            let Some(tenant) = tenant else { continue };
            let id = TenantId(index as u32);
            let num_running = running.iter().filter(|seq| seq.tenant == id).count();
            if tenant.num_running != num_running {
                return Err(format!("tenant {} counts {num_running} wrongly", tenant.name));
            }
            let keys = tenant.waiting.iter().map(|seq| (seq.priority, seq.arrival));
            if !keys.is_sorted() || tenant.waiting.iter().any(|seq| seq.tenant != id) {
                return Err(format!("the queue of tenant {} is out of order", tenant.name));
            }
            if tenant.rank.is_some_and(|rank| !self.order.contains(&rank)) {
                return Err(format!("tenant {} is not in the order", tenant.name));
            }
            len += tenant.waiting.len();
            idle += usize::from(tenant.waiting.is_empty() && num_running == 0);
        }
        let ranked = self.tenants.iter().flatten().filter(|tenant| tenant.rank.is_some()).count();
        if len != self.len || idle != self.num_idle_tenants || ranked != self.order.len() {
            return Err(format!("{len} wait and {idle} tenants are idle, counted otherwise"));
        }
        Ok(())
    }
}
