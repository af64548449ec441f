"""What finished runs give: scores of any cases, masks of new images, the results of folds. Nothing is trained."""
