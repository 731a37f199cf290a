"""The generic scripted expert: geometry, grasp and place planning, articulated skills, control. No per-task code."""
