"""Model -> PermutationSpec: discovery of permutation symmetries from an exported graph, with a numerical proof."""
