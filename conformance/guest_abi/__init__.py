"""Suite `guest-abi`: the kernel of a PV guest, judged from the hypervisor's side.

`subject` is what is judged, `recorder` takes down what it asks of Xen, `life` is a whole life of a domain under some
scenario, and the checks look at lives.
"""
