//! The objects, and the one history of their changes that watches read.
//!
//! Everything is under one lock and nothing waits: a request is one step, as in etcd.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::error::{ApiError, FieldError};
use super::gates::Gates;
use super::history::History;
use super::kinds::{self, Kind, KindRef};
use super::paging::{Continue, Page};
use super::patch::{self, Patch};
use super::quota::Usage;
use super::selector::Selectors;
use super::version::Version;
use super::{clock, custom, schema, strategy};

pub use super::history::{Change, HISTORY_BYTES};
pub use super::strategy::Part;

/// Events that are kept, the newest. The real server keeps an hour of them.
const EVENTS: usize = 1000;

/// How often a name is generated that turns out to exist (`maxNameGenerationCreateAttempts` of the API server).
const NAME_ATTEMPTS: usize = 8;

/// What judges writes before they are made: the kind, `CREATE`, `UPDATE` or `DELETE`, and the object after and before.
type Judge = Box<dyn Fn(KindRef, &str, &Value, &Value) -> Result<(), String> + Send>;

/// Admission, where a test has set it.
#[derive(Default)]
struct Admission(Option<Judge>);

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    fn judge(&self, kind: KindRef, operation: &str, new: &Value, old: &Value) -> Result<(), ApiError> {
        let Some(judge) = &self.0 else { return Ok(()) };
        judge(kind, operation, new, old).map_err(|why| {
            let name =
                [new, old].into_iter().find_map(|it| it["metadata"]["name"].as_str()).unwrap_or_default();
            ApiError::denied(kind, name, &why)
        })
    }
}

/// Where an object stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: KindRef,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The key of an object of a kind.
    #[must_use]
    pub fn new(kind: KindRef, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace } else { "" };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// How a write is to be done.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    /// Do everything but store the result.
    pub dry_run: bool,
    /// Refuse fields that the kind does not have.
    pub strict: bool,
    /// Who applies; only for server-side apply.
    pub manager: String,
}

/// How a deletion is to be done.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object is at this resource version.
    pub resource_version: Option<String>,
    /// Seconds a bound pod gets; 0 removes it at once.
    pub grace_period_seconds: Option<i64>,
    /// Do everything but delete.
    pub dry_run: bool,
    /// Leave dependents alone.
    pub orphan: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) value: Arc<Value>,
    /// The resource version that its creation made.
    created: u64,
    /// What each manager applied last.
    applied: BTreeMap<String, Value>,
}

/// Everything under the lock.
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) objects: BTreeMap<Key, Stored>,
    revision: u64,
    history: History,
    /// Events in the order of their creation, those that are gone included.
    events: VecDeque<Key>,
    pub(super) gates: Gates,
    admission: Admission,
}

/// A page of a list.
#[derive(Debug)]
pub struct Listed {
    /// Its objects, sorted by namespace and name.
    pub items: Vec<Arc<Value>>,
    /// The resource version of the whole list.
    pub revision: u64,
    /// Where the next page begins, if there is one.
    pub next: Option<Continue>,
    /// Objects after this page.
    pub remaining: usize,
}

/// All objects of the simulated cluster.
#[derive(Debug)]
pub struct Store {
    inner: Mutex<Inner>,
    revisions: watch::Sender<u64>,
}

impl Store {
    /// An empty cluster with the namespaces that every cluster has.
    #[must_use]
    pub fn new(gates: Gates) -> Self {
        let inner = Inner { gates, ..Inner::default() };
        let store = Self { inner: Mutex::new(inner), revisions: watch::Sender::new(0) };
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let labels = json!({"kubernetes.io/metadata.name": name});
            let namespace = json!({"metadata": {"name": name, "labels": labels}, "spec": {"finalizers": []}});
            // The names are valid and unused, so this cannot fail.
            drop(store.create(&kinds::NAMESPACE, "", namespace, &WriteOptions::default()));
        }
        store
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-written object: every change is one insert.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches `DRAPartitionableDevices`, as a restarted API server with another flag would.
    pub fn set_gates(&self, change: impl FnOnce(&mut Gates)) {
        change(&mut self.lock().gates);
    }

    /// Has every write judged from now on, whichever client makes it.
    pub fn set_admission(
        &self,
        judge: impl Fn(KindRef, &str, &Value, &Value) -> Result<(), String> + Send + 'static,
    ) {
        self.lock().admission = Admission(Some(Box::new(judge)));
    }

    /// The feature gates.
    #[must_use]
    pub fn gates(&self) -> Gates {
        self.lock().gates
    }

    /// The version of the server.
    #[must_use]
    pub fn version(&self) -> Version {
        self.lock().gates.version
    }

    /// Whether a kind is served: one of Kubernetes itself, or one whose definition is there.
    #[must_use]
    pub fn serves(&self, kind: KindRef) -> bool {
        kind.definition().is_none() || self.lock().definition(kind).is_some()
    }

    /// The kinds that are served.
    #[must_use]
    pub fn served(&self) -> Vec<KindRef> {
        kinds::ALL.iter().copied().filter(|it| self.serves(it)).collect()
    }

    /// The current resource version.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Tells when the resource version moves.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revisions.subscribe()
    }

    /// Forgets the history, so that watches from the current and older versions answer 410.
    pub fn compact(&self) {
        let mut inner = self.lock();
        inner.revision += 1;
        let revision = inner.revision;
        inner.history.compact(revision);
    }

    /// Changes of a kind after a resource version, and the version that they lead to.
    ///
    /// # Errors
    /// 410 when the version is older than the history.
    pub fn changes_since(&self, kind: KindRef, revision: u64) -> Result<(Vec<Change>, u64), ApiError> {
        let inner = self.lock();
        Ok((inner.history.since(kind, revision)?, inner.revision))
    }

    /// Reads one object.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, kind: KindRef, namespace: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        let inner = self.lock();
        let stored = inner.objects.get(&Key::new(kind, namespace, name));
        stored.map(|s| s.value.clone()).ok_or_else(|| ApiError::not_found(kind, name))
    }

    /// The objects of a kind in all namespaces, the oldest first.
    #[must_use]
    pub fn list_by_age(&self, kind: KindRef) -> Vec<Arc<Value>> {
        let inner = self.lock();
        let mut items: Vec<&Stored> =
            inner.objects.iter().filter(|(key, _)| key.kind == kind).map(|(_, stored)| stored).collect();
        items.sort_by_key(|stored| stored.created);
        items.into_iter().map(|stored| stored.value.clone()).collect()
    }

    /// The objects of a kind in one namespace or in all, sorted by namespace and name, and the resource version.
    #[must_use]
    pub fn list(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        selectors: &Selectors,
    ) -> (Vec<Arc<Value>>, u64) {
        let inner = self.lock();
        let items = inner
            .objects
            .iter()
            .filter(|(key, _)| key.kind == kind && namespace.is_none_or(|n| key.namespace == n))
            .filter(|(_, stored)| selectors.matches(&stored.value))
            .map(|(_, stored)| stored.value.clone());
        (items.collect(), inner.revision)
    }

    /// One page of a list.
    ///
    /// # Errors
    /// 410 where the list that is continued is older than the history.
    pub fn list_page(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        selectors: &Selectors,
        page: &Page,
    ) -> Result<Listed, ApiError> {
        let inner = self.lock();
        let (first, revision) = match &page.from {
            None => (None, inner.revision),
            Some(from) => (Some(&from.after), from.revision),
        };
        let current = inner.objects.iter().filter(|(key, _)| key.kind == kind);
        let mut objects: BTreeMap<(&str, &str), &Arc<Value>> = current
            .map(|(key, stored)| ((key.namespace.as_str(), key.name.as_str()), &stored.value))
            .collect();
        // As they were at that version.
        let changes = inner.history.since(kind, revision).map_err(|_| ApiError::continue_expired())?;
        for change in changes.iter().rev() {
            let name = |field: &str| change.new["metadata"][field].as_str().unwrap_or_default();
            let key = (name("namespace"), name("name"));
            match &change.old {
                Some(old) => drop(objects.insert(key, old)),
                None => drop(objects.remove(&key)),
            }
        }
        let is_wanted = |(key, value): &((&str, &str), &Arc<Value>)| {
            namespace.is_none_or(|it| key.0 == it)
                && first.is_none_or(|it| (it.0.as_str(), it.1.as_str()) < *key)
                && selectors.matches(value)
        };
        let mut left = objects.into_iter().filter(is_wanted);
        let limit = page.limit.unwrap_or(usize::MAX);
        let mut last = None;
        let items = left
            .by_ref()
            .take(limit)
            .map(|((namespace, name), value)| {
                last = Some((namespace, name));
                value.clone()
            })
            .collect();
        let remaining = left.count();
        let next = last
            .filter(|_| 0 < remaining)
            .map(|(namespace, name)| Continue { revision, after: (namespace.to_owned(), name.to_owned()) });
        Ok(Listed { items, revision, next, remaining })
    }

    /// Creates an object; answers what was stored, or would have been.
    ///
    /// # Errors
    /// 400, 404 for a missing namespace, 409 when it exists, 422.
    pub fn create(
        &self,
        kind: KindRef,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let mut inner = self.lock();
        let value = inner.new_object(kind, namespace, object, options)?;
        let key = key_of(kind, &value);
        if inner.objects.contains_key(&key) {
            return Err(ApiError::already_exists(kind, &key.name));
        }
        let value = self.write(&mut inner, &key, None, value, BTreeMap::new(), options.dry_run);
        if kind.kind == kinds::EVENT.kind && !options.dry_run {
            inner.events.push_back(key);
            if inner.events.len() > EVENTS
                && let Some(oldest) = inner.events.pop_front()
            {
                self.remove(&mut inner, &oldest, true);
            }
        }
        Ok(value)
    }

    /// What the claims and pods of a namespace count for in quotas.
    #[must_use]
    pub fn quota_usage(&self, namespace: &str) -> Usage {
        self.lock().quota_usage(namespace)
    }

    /// About how many bytes are kept for watches.
    #[must_use]
    pub fn history_bytes(&self) -> usize {
        self.lock().history.bytes()
    }

    /// Replaces an object, or its status.
    ///
    /// # Errors
    /// 400, 404, 409 when the resource version or uid in the body is not the stored one, 422.
    pub fn update(
        &self,
        kind: KindRef,
        namespace: &str,
        name: &str,
        object: Value,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let mut inner = self.lock();
        let key = Key::new(kind, namespace, name);
        let old = inner.objects.get(&key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        self.replace(&mut inner, &key, &old, object, part, options, old.applied.clone())
    }

    /// Changes an object, or its status; apply also creates.
    ///
    /// # Errors
    /// As [`Store::update`]; also 409 when apply without force meets another applier's field.
    pub fn patch(
        &self,
        kind: KindRef,
        namespace: &str,
        name: &str,
        patch: &Patch,
        part: Part,
        options: &WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let mut inner = self.lock();
        let key = Key::new(kind, namespace, name);
        let old = inner.objects.get(&key).cloned();
        let (Some(old), current) = (old.as_ref(), old.as_ref().map(|o| (*o.value).clone())) else {
            return match patch {
                Patch::Apply { object, .. } if part == Part::Main => {
                    let applied = BTreeMap::from([(options.manager.clone(), object.clone())]);
                    let mut object = object.clone();
                    object["metadata"]["name"] = name.into();
                    let value = inner.new_object(kind, namespace, object, options)?;
                    Ok(self.write(&mut inner, &key, None, value, applied, options.dry_run))
                }
                _ => Err(ApiError::not_found(kind, name)),
            };
        };
        let mut value = current.unwrap_or(Value::Null);
        let mut applied = old.applied.clone();
        match patch {
            Patch::Json(operations) => patch::json(&mut value, operations)?,
            Patch::Merge(change) => patch::merge(&mut value, change),
            Patch::Strategic(change) => patch::strategic(kind, &mut value, change, ""),
            Patch::Apply { object, force } => {
                let owner =
                    format!("{}{}", options.manager, if part == Part::Status { "/status" } else { "" });
                if !force {
                    refuse_conflicts(kind, name, &owner, &applied, &value, object)?;
                }
                let previous = applied.insert(owner, object.clone()).unwrap_or(Value::Null);
                patch::apply(kind, &mut value, &previous, object, "");
                if let Some(definition) = inner.definition(kind) {
                    custom::applied(kind, definition, &mut value)?;
                }
            }
        }
        // To a patch the UID is a field that never changes; only an update takes it as a precondition.
        let (stored, given) = (&old.value["metadata"]["uid"], &value["metadata"]["uid"]);
        if !given.is_null() && given != stored {
            let error = FieldError::invalid("metadata.uid", given, "field is immutable");
            return Err(ApiError::invalid(kind, name, vec![error]));
        }
        self.replace(&mut inner, &key, old, value, part, options, applied)
    }

    #[expect(clippy::too_many_arguments, reason = "the shared end of update and patch")]
    fn replace(
        &self,
        inner: &mut Inner,
        key: &Key,
        old: &Stored,
        object: Value,
        part: Part,
        options: &WriteOptions,
        applied: BTreeMap<String, Value>,
    ) -> Result<Arc<Value>, ApiError> {
        let kind = key.kind;
        let mut new = inner.decode(kind, object, options.strict)?;
        let stored = &old.value["metadata"];
        let given = &new["metadata"];
        let stale = |field: &str| given[field].as_str().is_some_and(|v| !v.is_empty() && stored[field] != v);
        if stale("uid") {
            return Err(ApiError::conflict(kind, &key.name, "the UID in the object is not the stored one"));
        }
        if stale("resourceVersion") {
            let why =
                "the object has been modified; please apply your changes to the latest version and try again";
            return Err(ApiError::conflict(kind, &key.name, why));
        }
        if given["name"].as_str().is_some_and(|n| n != key.name) {
            let text = "the name of the object does not match the name on the URL";
            return Err(ApiError::bad_request(text));
        }
        let server_owned = [
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generateName",
        ];
        for field in server_owned {
            match stored.get(field) {
                Some(value) => new["metadata"][field] = value.clone(),
                None => drop(new["metadata"].as_object_mut().and_then(|m| m.remove(field))),
            }
        }
        strategy::before_update(kind, &old.value, &mut new, part, inner.gates);
        strategy::validated(kind, &new, Some(&old.value), part, inner.gates.version)?;
        inner.validate_custom(kind, &new)?;
        strategy::finish(kind, &mut new);
        inner.admission.judge(kind, "UPDATE", &new, &old.value)?;
        if new == *old.value {
            // The real server does not write what does not change, so a no-op gives no watch event.
            if let Some(entry) = inner.objects.get_mut(key).filter(|_| !options.dry_run) {
                entry.applied = applied;
            }
            return Ok(old.value.clone());
        }
        if new["spec"] != old.value["spec"]
            && let Some(generation) = stored["generation"].as_i64()
        {
            new["metadata"]["generation"] = json!(generation + 1);
        }
        let value = self.write(inner, key, Some(old.value.clone()), new, applied, options.dry_run);
        let meta = &value["metadata"];
        let finished = meta["finalizers"].as_array().is_none_or(Vec::is_empty)
            && !meta["deletionTimestamp"].is_null()
            && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0;
        if finished && !options.dry_run {
            self.remove(inner, key, false);
        }
        Ok(value)
    }

    /// Deletes an object, or marks it where finalizers or a running pod hold it. Answers the object, and whether it is gone.
    ///
    /// # Errors
    /// 404, 409 when a precondition does not hold.
    pub fn delete(
        &self,
        kind: KindRef,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(Arc<Value>, bool), ApiError> {
        let mut inner = self.lock();
        let key = Key::new(kind, namespace, name);
        let old = inner.objects.get(&key).cloned().ok_or_else(|| ApiError::not_found(kind, name))?;
        let meta = &old.value["metadata"];
        for (field, wanted) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
            if let Some(wanted) = wanted.as_ref().filter(|w| meta[field] != w.as_str()) {
                let why = format!(
                    "Precondition failed: {field} in precondition: {wanted}, in object: {}",
                    meta[field]
                );
                return Err(ApiError::conflict(kind, name, &why));
            }
        }
        inner.admission.judge(kind, "DELETE", &Value::Null, &old.value)?;
        if options.dry_run {
            return Ok((old.value.clone(), true));
        }
        let held = meta["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let bound =
            kind == &kinds::POD && old.value["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
        let grace =
            options.grace_period_seconds.or(old.value["spec"]["terminationGracePeriodSeconds"].as_i64());
        let grace = if bound { grace.unwrap_or(30) } else { 0 };
        if !held && grace == 0 {
            let value = self.remove(&mut inner, &key, options.orphan);
            return Ok((value.unwrap_or(old.value), true));
        }
        if !meta["deletionTimestamp"].is_null()
            && meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) <= grace
        {
            return Ok((old.value.clone(), false));
        }
        let mut value = (*old.value).clone();
        value["metadata"]["deletionTimestamp"] = clock::now().into();
        value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let value = self.write(&mut inner, &key, Some(old.value.clone()), value, old.applied.clone(), false);
        Ok((value, false))
    }

    /// Deletes every selected object of a kind; answers those objects.
    pub fn delete_collection(
        &self,
        kind: KindRef,
        namespace: Option<&str>,
        selectors: &Selectors,
        options: &DeleteOptions,
    ) -> Vec<Arc<Value>> {
        let (items, _) = self.list(kind, namespace, selectors);
        let delete = |object: &Arc<Value>| {
            let key = key_of(kind, object);
            // One that is gone in the meantime is one fewer to delete.
            self.delete(kind, &key.namespace, &key.name, options).ok().map(|(value, _)| value)
        };
        items.iter().filter_map(delete).collect()
    }

    /// Stores a value (unless it is a dry run) and tells the watches.
    fn write(
        &self,
        inner: &mut Inner,
        key: &Key,
        old: Option<Arc<Value>>,
        mut value: Value,
        applied: BTreeMap<String, Value>,
        dry_run: bool,
    ) -> Arc<Value> {
        if dry_run {
            return Arc::new(value);
        }
        inner.revision += 1;
        value["metadata"]["resourceVersion"] = inner.revision.to_string().into();
        let value = Arc::new(value);
        let created = inner.objects.get(key).map_or(inner.revision, |stored| stored.created);
        inner.objects.insert(key.clone(), Stored { value: value.clone(), created, applied });
        self.record(inner, Change { revision: 0, kind: key.kind, old, new: value.clone(), deleted: false });
        value
    }

    fn record(&self, inner: &mut Inner, change: Change) {
        let revision = inner.revision;
        inner.history.push(Change { revision, ..change });
        self.revisions.send_replace(inner.revision);
    }

    /// Removes an object and, unless orphaned, what it owned.
    fn remove(&self, inner: &mut Inner, key: &Key, orphan: bool) -> Option<Arc<Value>> {
        let old = inner.objects.remove(key)?.value;
        inner.revision += 1;
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = inner.revision.to_string().into();
        let last = Arc::new(last);
        self.record(
            inner,
            Change { revision: 0, kind: key.kind, old: Some(old), new: last.clone(), deleted: true },
        );
        let uid = last["metadata"]["uid"].clone();
        if !orphan {
            for dependent in inner.dependents(&uid) {
                self.collect(inner, &dependent);
            }
        }
        if key.kind == &kinds::CUSTOM_RESOURCE_DEFINITION {
            let of_the_kind = |it: &&Key| it.kind.definition().as_ref() == Some(&key.name);
            let objects: Vec<Key> = inner.objects.keys().filter(of_the_kind).cloned().collect();
            objects.iter().for_each(|it| self.collect(inner, it));
        }
        if key.kind == &kinds::NAMESPACE {
            let inside: Vec<Key> =
                inner.objects.keys().filter(|k| k.namespace == key.name).cloned().collect();
            inside.iter().for_each(|k| self.collect(inner, k));
        }
        Some(last)
    }

    /// What the garbage collector does with an object whose owner is gone.
    fn collect(&self, inner: &mut Inner, key: &Key) {
        let Some(stored) = inner.objects.get(key).cloned() else { return };
        let meta = &stored.value["metadata"];
        let held = meta["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let bound = key.kind == &kinds::POD && !stored.value["spec"]["nodeName"].is_null();
        if !held && !bound {
            self.remove(inner, key, false);
        } else if meta["deletionTimestamp"].is_null() {
            let mut value = (*stored.value).clone();
            value["metadata"]["deletionTimestamp"] = clock::now().into();
            value["metadata"]["deletionGracePeriodSeconds"] = json!(if bound { 30 } else { 0 });
            self.write(inner, key, Some(stored.value.clone()), value, stored.applied, false);
        }
    }
}

fn key_of(kind: KindRef, object: &Value) -> Key {
    let meta = &object["metadata"];
    Key::new(kind, meta["namespace"].as_str().unwrap_or(""), meta["name"].as_str().unwrap_or(""))
}

fn refuse_conflicts(
    kind: &Kind,
    name: &str,
    owner: &str,
    applied: &BTreeMap<String, Value>,
    current: &Value,
    wanted: &Value,
) -> Result<(), ApiError> {
    for (other, theirs) in applied.iter().filter(|(other, _)| *other != owner) {
        let paths = patch::apply_conflicts(theirs, current, wanted, "");
        if let Some(path) = paths.first() {
            let why = format!("Apply failed with 1 conflict: conflict with \"{other}\": {path}");
            return Err(ApiError::conflict(kind, name, &why));
        }
    }
    Ok(())
}

impl Inner {
    /// The definition of a custom kind.
    fn definition(&self, kind: KindRef) -> Option<&Value> {
        let key = Key::new(&kinds::CUSTOM_RESOURCE_DEFINITION, "", &kind.definition()?);
        self.objects.get(&key).map(|it| &*it.value)
    }

    /// Reads an object by the types of Kubernetes, or by the schema in the definition of its kind.
    fn decode(&self, kind: KindRef, object: Value, strict: bool) -> Result<Value, ApiError> {
        match self.definition(kind) {
            Some(definition) => custom::decode(kind, definition, object, strict),
            None if kind.definition().is_some() => Err(ApiError::no_such_path()),
            None => schema::decode(kind, object, strict),
        }
    }

    /// Judges an object by the schema in the definition of its kind.
    fn validate_custom(&self, kind: KindRef, object: &Value) -> Result<(), ApiError> {
        self.definition(kind).map_or(Ok(()), |it| custom::validate(kind, it, object))
    }

    /// A new object, complete except for its resource version.
    fn new_object(
        &self,
        kind: KindRef,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, ApiError> {
        let mut value = self.decode(kind, object, options.strict)?;
        let meta = &mut value["metadata"];
        let given = |meta: &Value, field: &str| meta[field].as_str().unwrap_or("").to_owned();
        if given(meta, "name").is_empty() {
            let base: String = given(meta, "generateName").chars().take(58).collect();
            if base.is_empty() {
                let error = FieldError::required("metadata.name", "name or generateName is required");
                return Err(ApiError::invalid(kind, "", vec![error]));
            }
            meta["name"] = self.generated_name(kind, namespace, &base).into();
        }
        if kind.namespaced {
            let stated = given(meta, "namespace");
            if !stated.is_empty() && stated != namespace {
                let text =
                    "the namespace of the provided object does not match the namespace sent on the request";
                return Err(ApiError::bad_request(text));
            }
            let inside = self.objects.get(&Key::new(&kinds::NAMESPACE, "", namespace));
            let inside = inside.ok_or_else(|| ApiError::not_found(&kinds::NAMESPACE, namespace))?;
            meta["namespace"] = namespace.into();
            strategy::admin_access(kind, &value, &inside.value)?;
        } else if let Some(meta) = meta.as_object_mut() {
            meta.remove("namespace");
        }
        let meta = &mut value["metadata"];
        meta["uid"] = clock::uuid().into();
        meta["creationTimestamp"] = clock::now().into();
        if let Some(meta) = meta.as_object_mut() {
            for field in
                ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"]
            {
                meta.remove(field);
            }
        }
        let counted = [
            "Pod",
            "Deployment",
            "ReplicaSet",
            "ResourceSlice",
            "DeviceClass",
            "MigNode",
            "PodDisruptionBudget",
        ];
        if counted.contains(&kind.kind) {
            meta["generation"] = json!(1);
        }
        strategy::before_create(kind, &mut value, self.gates);
        strategy::validated(kind, &value, None, Part::Main, self.gates.version)?;
        self.validate_custom(kind, &value)?;
        strategy::finish(kind, &mut value);
        if kind == &kinds::POD {
            self.prioritise(&mut value)?;
        }
        self.refuse_beyond_quota(kind, namespace, &value)?;
        self.admission.judge(kind, "CREATE", &value, &Value::Null)?;
        Ok(value)
    }

    /// A name that no object has, of at most eight attempts, as the API server makes it: of 1,000 names one in 14,000 new ones exists.
    fn generated_name(&self, kind: KindRef, namespace: &str, base: &str) -> String {
        let namespace = if kind.namespaced { namespace } else { "" };
        let mut name = String::new();
        for _ in 0..NAME_ATTEMPTS {
            name = format!("{base}{}", clock::name_suffix());
            if !self.objects.contains_key(&Key::new(kind, namespace, &name)) {
                break;
            }
        }
        name
    }

    /// Objects that this uid owned and that no other existing object owns.
    fn dependents(&self, uid: &Value) -> Vec<Key> {
        let owners =
            |object: &Value| object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let exists = |uid: &Value| self.objects.values().any(|s| s.value["metadata"]["uid"] == *uid);
        let orphaned = |object: &Value| {
            let owners = owners(object);
            owners.iter().any(|o| o["uid"] == *uid) && !owners.iter().any(|o| exists(&o["uid"]))
        };
        self.objects.iter().filter(|(_, s)| orphaned(&s.value)).map(|(key, _)| key.clone()).collect()
    }
}
