//! Claims whose state file is lost or cannot be read: nothing of another program is destroyed, nothing of the claim is lost, and the
//! driver goes on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common;
use common::{ControlPlane, DRIVER, Lab, eventually, prepare, unprepare};
use kube_sim::kubelet::{Claim, Plugin};
use nvml_sim::{Code, Fault};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const FIRST_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-6";
const SECOND_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-5";
const THIRD_1G: &str = "gpu-0000-1a-00-mig-1g-10gb-4";

async fn lab(extra: &[&str]) -> Lab {
    Lab::new(ControlPlane::simulated(true).await, "1xH100-80GB").await.with_args(extra)
}

fn record(lab: &Lab, claim: &Claim) -> PathBuf {
    lab.path("plugins").join(DRIVER).join("claims").join(format!("{}.jsonl", claim.uid))
}

fn cdi_file(lab: &Lab, uid: &str) -> PathBuf {
    lab.path("cdi").join(format!("{DRIVER}-claim_{uid}.json"))
}

/// Serial numbers tell an instance from its successor.
fn serial_at(lab: &Lab, start: u32) -> Option<u32> {
    let gpu = &lab.sim.snapshot().unwrap().gpus[0];
    gpu.gpu_instances.iter().find(|it| it.start == start).map(|it| it.serial)
}

fn starts(lab: &Lab) -> Vec<u32> {
    let mut starts: Vec<u32> = lab.instances().into_iter().map(|(_, _, start)| start).collect();
    starts.sort_unstable();
    starts
}

fn is_clean(lab: &Lab) -> bool {
    lab.left().iter().all(|it| it.ends_with(".unreadable"))
}

/// A claim of the first two devices whose record was lost and whose unprepare got half way. Answers with the claim, and where the
/// instance is that is left and where the one was that is destroyed.
async fn half_unprepared(lab: &Lab, kubelet: &Plugin) -> (Claim, u32, u32) {
    let claim = lab.claim("two", &[("gpu", DRIVER, FIRST_1G), ("gpu", DRIVER, SECOND_1G)]).await;
    prepare(kubelet, &claim).await.unwrap();
    fs::remove_file(record(lab, &claim)).unwrap();
    lab.sim.inject(Fault::returning("nvmlGpuInstanceDestroy", Code::UNKNOWN).skipping(1)).unwrap();
    let refused = unprepare(kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("nvmlGpuInstanceDestroy"), "{refused}");
    lab.sim.clear_faults().unwrap();
    match starts(lab)[..] {
        [5] => (claim, 5, 6),
        [6] => (claim, 6, 5),
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_lost_its_record_does_not_get_an_administrators_instance_in_place_of_one_that_is_destroyed()
 {
    let mut lab = lab(&[]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let (claim, _, destroyed) = half_unprepared(&lab, &kubelet).await;
    lab.sim.plant_instance(0, "1g.10gb", destroyed).unwrap();
    let planted = serial_at(&lab, destroyed);
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("occupied"), "{refused}");
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!((starts(&lab), serial_at(&lab, destroyed)), (vec![destroyed], planted));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_lost_its_record_keeps_the_instance_that_its_unprepare_could_not_destroy() {
    let mut lab = lab(&[]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let (claim, left, _) = half_unprepared(&lab, &kubelet).await;
    let kept = serial_at(&lab, left);
    fs::remove_file(cdi_file(&lab, &claim.uid)).unwrap();
    let answer = prepare(&kubelet, &claim).await.unwrap();
    assert!(answer.iter().all(|it| it.requests == ["gpu"]), "{answer:?}");
    assert_eq!((starts(&lab), serial_at(&lab, left)), (vec![5, 6], kept));
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab), "{:?}", lab.left());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_lost_its_record_and_is_allocated_other_devices_first_gives_back_what_it_has() {
    let mut lab = lab(&[]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let (claim, ..) = half_unprepared(&lab, &kubelet).await;
    lab.reallocate(&claim, &[THIRD_1G]).await;
    assert_eq!(prepare(&kubelet, &claim).await.unwrap()[0].device, THIRD_1G);
    assert_eq!(starts(&lab), [4]);
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab), "{:?}", lab.left());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claim_is_allocated_now_is_not_taken_for_what_its_cdi_file_says_it_was_prepared_with() {
    for is_unreadable in [false, true] {
        let mut lab = lab(&[]).await;
        lab.start();
        let kubelet = lab.kubelet().await;
        let claim = lab.claim_of("one", FIRST_1G).await;
        prepare(&kubelet, &claim).await.unwrap();
        match is_unreadable {
            true => fs::write(record(&lab, &claim), "rubbish").unwrap(),
            false => fs::remove_file(record(&lab, &claim)).unwrap(),
        }
        lab.reallocate(&claim, &[SECOND_1G]).await;
        lab.sim.plant_instance(0, "1g.10gb", 5).unwrap();
        let before = [5, 6].map(|it| serial_at(&lab, it));
        let refused = prepare(&kubelet, &claim).await.unwrap_err();
        assert!(
            refused.contains(FIRST_1G) && refused.contains(SECOND_1G) && refused.contains("delete the pods"),
            "{refused}"
        );
        assert_eq!([5, 6].map(|it| serial_at(&lab, it)), before, "a pod may use the first one");
        unprepare(&kubelet, &claim).await.unwrap();
        assert_eq!((starts(&lab), serial_at(&lab, 5)), (vec![5], before[0]));
        lab.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_earlier_boot_does_not_hide_what_the_cdi_file_of_another_claim_names() {
    let mut lab = lab(&["--rescan-interval", "1"]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let earlier = lab.claim_of("earlier", FIRST_1G).await;
    prepare(&kubelet, &earlier).await.unwrap();
    lab.stop().await;
    lab.sim.reboot().unwrap();
    fs::remove_dir_all(lab.path("cdi")).unwrap();
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    let first = prepare(&kubelet, &claim).await.unwrap();
    fs::remove_file(record(&lab, &claim)).unwrap();
    // Each time at the end of a sweep, so that a whole one has come and gone.
    for _ in 0..2 {
        let stray = cdi_file(&lab, "0f3c2d1e-stray");
        fs::write(&stray, "{}").unwrap();
        eventually("the stray file is gone", async || (!stray.exists()).then_some(())).await;
    }
    assert!(cdi_file(&lab, &claim.uid).exists(), "its unprepare needs the file");
    assert_eq!(prepare(&kubelet, &claim).await.unwrap(), first);
    unprepare(&kubelet, &claim).await.unwrap();
    assert_eq!((lab.instances(), lab.recorded()), (Vec::new(), vec![earlier.uid.clone()]));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_lost_its_record_waits_for_another_claim_that_got_one_of_its_devices() {
    let mut lab = lab(&["--call-budget", "1"]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim("two", &[("gpu", DRIVER, FIRST_1G), ("gpu", DRIVER, SECOND_1G)]).await;
    prepare(&kubelet, &claim).await.unwrap();
    fs::remove_file(record(&lab, &claim)).unwrap();
    // Another program destroys the second instance.
    lab.sim.on_gpu(0, |gpu| gpu.instances.retain(|it| it.start == 6)).unwrap();
    let other = lab.claim_of("other", SECOND_1G).await;
    prepare(&kubelet, &other).await.unwrap();
    let refused = prepare(&kubelet, &claim).await.unwrap_err();
    assert!(refused.contains("still holds") && refused.contains(SECOND_1G), "{refused}");
    unprepare(&kubelet, &other).await.unwrap();
    assert_eq!(prepare(&kubelet, &claim).await.unwrap().len(), 2);
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(is_clean(&lab), "{:?}", lab.left());
    lab.stop().await;
}

/// Puts something in the place of a claim's CDI file that is no file of this driver.
type Break = fn(&Path);

const BREAKS: [Break; 4] = [
    |it| fs::create_dir(it).unwrap(),
    |it| mknodat(CWD, it, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
    |it| symlink("/dev/zero", it).unwrap(),
    |it| fs::File::create(it).unwrap().set_len(5 << 20).unwrap(),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_cdi_file_that_cannot_be_read_beside_a_state_file_that_cannot_keeps_no_driver_from_starting() {
    let mut lab = lab(&[]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let mut claims = Vec::new();
    for start in 0..4 {
        let device = format!("gpu-0000-1a-00-mig-1g-10gb-{start}");
        let claim = lab.claim_of(&format!("at-{start}"), &device).await;
        let first = prepare(&kubelet, &claim).await.unwrap();
        claims.push((claim, first));
    }
    lab.stop().await;
    for ((claim, _), break_it) in claims.iter().zip(BREAKS) {
        fs::write(record(&lab, claim), "rubbish").unwrap();
        let file = cdi_file(&lab, &claim.uid);
        fs::remove_file(&file).unwrap();
        break_it(&file);
    }

    lab.start();
    let kubelet = lab.kubelet().await;
    let other = lab.claim_of("other", FIRST_1G).await;
    prepare(&kubelet, &other).await.unwrap();
    unprepare(&kubelet, &other).await.unwrap();
    assert_eq!(starts(&lab), [0, 1, 2, 3], "what cannot be read stays");

    // A directory is the administrator's: only that is not replaced.
    let (with_directory, file) = (&claims[0], cdi_file(&lab, &claims[0].0.uid));
    let refused = prepare(&kubelet, &with_directory.0).await.unwrap_err();
    assert!(refused.contains(&file.display().to_string()), "{refused}");
    fs::remove_dir(&file).unwrap();
    for (claim, first) in &claims {
        assert_eq!(prepare(&kubelet, claim).await.unwrap(), *first);
        assert!(fs::symlink_metadata(cdi_file(&lab, &claim.uid)).unwrap().is_file());
        unprepare(&kubelet, claim).await.unwrap();
    }
    assert!(is_clean(&lab), "{:?}", lab.left());
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_that_cannot_be_read_is_kept_aside_also_where_nothing_is_known_of_its_claim() {
    let mut lab = lab(&[]).await;
    lab.start();
    let kubelet = lab.kubelet().await;
    let claim = lab.claim_of("one", FIRST_1G).await;
    prepare(&kubelet, &claim).await.unwrap();
    let file = record(&lab, &claim);
    fs::write(&file, "rubbish").unwrap();
    fs::remove_file(cdi_file(&lab, &claim.uid)).unwrap();
    lab.delete_claim(&claim).await;
    unprepare(&kubelet, &claim).await.unwrap();
    assert!(!file.exists());
    assert_eq!(fs::read_to_string(file.with_extension("unreadable")).unwrap(), "rubbish");
    assert_eq!(starts(&lab), [6], "it counts as unmanaged");
    lab.stop().await;
}
