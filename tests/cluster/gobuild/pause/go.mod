module oet.example/pause

go 1.21
