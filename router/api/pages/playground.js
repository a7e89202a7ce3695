// The page at /.
