"""A stranger's driver, ring or store, judged against the protocols.

`kit` is what all suites share: checks, their outcomes, the runner, the reports. `suites` names the suites; each lies in
a folder of its own (`ring`, `xenstore`), with what it needs to talk to its subject.
"""
