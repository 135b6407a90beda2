"""Judge one completion: rules, verifiers, reward mixes and the service that applies them. Imports only `sandbox`.

A verifier sees a Task and text, and returns a Score with a reason. It never sees token ids, weights or the learner. Importing this
package loads none of sympy, ray or torch.
"""
