use super::*;

#[test]
fn a_bus_id_of_nvml_becomes_a_sysfs_address() {
    let address: PciAddress = "00000000:3B:00.0".parse().unwrap();
    assert_eq!(address.to_string(), "0000:3b:00.0");
    assert_eq!("10000:3b:1f.0".parse::<PciAddress>().unwrap().to_string(), "10000:3b:1f.0");
    assert!("3b:00.0".parse::<PciAddress>().is_err());
    assert!("0000:xx:00.0".parse::<PciAddress>().is_err());
}

#[test]
fn placements_that_touch_do_not_overlap() {
    let at = |start, size| Placement { start, size };
    assert!(at(0, 4).overlaps(at(3, 1)));
    assert!(!at(0, 4).overlaps(at(4, 4)));
    assert!(at(0, 8).overlaps(at(6, 1)));
}
