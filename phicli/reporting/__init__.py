"""Reports for people: pictures and pages made of figures and texts that are not trusted."""
