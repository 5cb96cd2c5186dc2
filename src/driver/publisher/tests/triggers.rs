//! What is published differs from what is offered after a write that failed: then any change of the claims is a reason to look.

use super::scene::Scene;

/// Whether the publisher looks at once more after it could write nothing of what it has decided.
fn looks_after_failure(scene: &mut Scene) -> bool {
    scene.decide();
    scene.rounds.write(0, scene.at(scene.now));
    scene.is_news()
}

#[test]
fn slices_that_could_not_be_created_are_looked_at_again() {
    let mut scene = Scene::new("1xH100-80GB");
    assert!(looks_after_failure(&mut scene));
    scene.look();
    assert!(!looks_after_failure(&mut scene), "nothing was to be written");
}

#[test]
fn slices_that_have_fewer_devices_or_others_than_are_offered_are_looked_at_again() {
    let mut scene = Scene::new("2xH100-80GB");
    scene.make_unhealthy(0);
    scene.look();
    let slices = scene.rounds.slices.len();
    scene.recover(0);
    assert!(looks_after_failure(&mut scene), "fewer");
    scene.look();
    assert_eq!(scene.rounds.slices.len(), slices);

    let mut scene = Scene::new("2xH100-80GB");
    let first = scene.gpus.remove(0);
    scene.look();
    scene.gpus = vec![first];
    assert!(looks_after_failure(&mut scene), "as many others");
}
